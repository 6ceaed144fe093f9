"""Loading a model without internet, with a real registry and the real libraries."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.config.catalogue import Catalogue
from kit.tools import check_model
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from tests.support.hub import Switches, serving_registry, small_repo

CHECK = Callable[..., list[list[str]]]


@pytest.fixture
def switches() -> Switches:
    """Requests that the registry got, and faults to inject."""
    return Switches()


@pytest.fixture
def checked(
    tmp_path: Path, switches: Switches, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[CHECK]:
    """Run `python -m kit.tools.check_model` for a model of a kind with some files; returns its output lines."""
    for name in check_model.OFFLINE:
        monkeypatch.setenv(name, "")
    repo = small_repo(tmp_path / "repo")
    with serving_registry(tmp_path / "store", switches=switches) as url:

        def run(kind: str, files: dict[str, str], code: int) -> list[list[str]]:
            for path, text in files.items():
                (repo / path).write_text(text)
            library = Library(FileStore(tmp_path / "store"), Catalogue([]))
            import_folder(library, repo, name="small", repo="test/small", revision="main")
            (tmp_path / "models.yaml").write_text(f"small: {{kind: {kind}, hf_repo: test/small}}\n")
            monkeypatch.setenv("CATALOGUE", str(tmp_path / "models.yaml"))
            monkeypatch.setenv("REGISTRY_URL", url)
            monkeypatch.setenv("MODEL_CACHE", str(tmp_path / "cache"))
            monkeypatch.setenv("MODEL", "small")
            capsys.readouterr()
            with pytest.raises(SystemExit) as end:
                check_model.main([])
            assert end.value.code == code
            printed = capsys.readouterr().out.splitlines()
            return [line.split("\t") for line in printed if line.startswith(("ok\t", "problem\t"))]

        yield run


# A tokenizer of one word, in the format of the `tokenizers` library.
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "Hello": 1}, "unk_token": "[UNK]"},
    }
)
TEXT_MODEL = {
    "config.json": '{"model_type": "bert", "vocab_size": 2}',
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}',
}


@pytest.mark.parametrize("kind", ["llm", "embedding", "reranker"])
def test_text_model_loads(checked: CHECK, kind: str) -> None:
    pytest.importorskip("transformers")
    files, loaded = checked(kind, TEXT_MODEL, 0)
    assert files[:2] == ["ok", "model small"]
    assert files[2].startswith("7 files, 0.00 GB in ")
    assert files[2].endswith("every digest verified")
    assert loaded[2] == "configuration and tokenizer loaded without internet"


def test_model_that_does_not_load_is_a_problem(checked: CHECK) -> None:
    """The digests match but there is no tokenizer: the library's message, and what to check."""
    pytest.importorskip("transformers")
    files, loaded = checked("llm", {"config.json": '{"model_type": "no-such-type"}'}, 1)
    assert files[0] == "ok"
    assert (loaded[0], loaded[2].startswith("does not load: ValueError: ")) == ("problem", True)
    assert "no-such-type" in loaded[2]
    assert "models.yaml" in loaded[3]


def test_whisper_without_weights_is_a_problem(checked: CHECK) -> None:
    pytest.importorskip("ctranslate2")
    _, loaded = checked("transcription", {"vocabulary.txt": "a\n"}, 1)
    assert "has no CTranslate2 model (model.bin)" in loaded[2]


def test_damage_with_unchanged_size_and_mtime_is_repaired(checked: CHECK, switches: Switches, tmp_path: Path) -> None:
    """Only the damaged file is fetched again."""
    pytest.importorskip("transformers")
    checked("llm", TEXT_MODEL, 0)
    weights = next((tmp_path / "cache").rglob("model.safetensors"))
    right, times = weights.read_bytes(), weights.stat()
    weights.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    checked("llm", TEXT_MODEL, 0)
    assert next((tmp_path / "cache").rglob("model.safetensors")).read_bytes() == right
    assert len(switches.requests("/model.safetensors")) == 2
    assert len(switches.requests("/tokenizer.json")) == 1


def test_model_missing_in_the_registry(checked: CHECK, switches: Switches) -> None:
    switches.status["small/revision/main"] = (404, {})
    (only,) = checked("llm", {}, 1)
    assert only[:2] == ["problem", "model small"]
    assert "test/small at main is not in the registry" in only[2]
    assert only[3] == "Run scripts/offline-setup.sh small with internet."


def test_model_missing_in_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models.yaml").write_text("small: {kind: llm, hf_repo: test/small}\n")
    monkeypatch.setenv("CATALOGUE", str(tmp_path / "models.yaml"))
    with pytest.raises(SystemExit) as end:
        check_model.main(["large"])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert printed.startswith("problem\tmodel large\t")
    assert "small" in printed
