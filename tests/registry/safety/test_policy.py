"""Refused models: pickles that run code, and code from other repositories."""

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.config.catalogue import Catalogue
from kit.config.hub_names import BadName
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.safety.opcodes import MAX_KEPT
from registry.safety.pickles import Unsafe, check_pickles
from registry.safety.policy import Policy
from registry.safety.remote_code import code_repos
from registry.store.file_store import FileStore
from registry.store.interface import Store, StoreDown
from tests.support import plain_http
from tests.support.hub import random_bytes, serving_registry, small_repo, wait_for_job


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


ANYTHING = Policy(pickles="allow", remote_code=True)
EVIL = pickle.dumps(RunsCode())
HARMLESS = pickle.dumps(OrderedDict(weights=[1.0, 2.0]))
TORCH_TAKES = b"ctorch._utils\n_rebuild_parameter\n."


def zipped(name: str, content: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(name, content)
    return whole.getvalue()


def check(store: Store, path: str, content: bytes, **limits: int) -> None:
    digest = hashlib.sha256(content).hexdigest()
    store.put_blob(digest, len(content), [content])
    check_pickles(store, path, digest, len(content), **limits)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("pytorch_model.bin", EVIL),
        ("pytorch_model.bin", zipped("archive/data.pkl", EVIL)),
        ("weights.pt", HARMLESS + EVIL),
        ("no_ending", EVIL),
        ("picture.png", EVIL),
        ("picture.png", zipped("x.pkl", EVIL)),
        ("broken_off.pkl", EVIL[:-4]),
        ("not_known_to_be_harmless.pkl", b"cnobody_knows\nthis\n."),
        ("evil.7z", b"7z\xbc\xaf\x27\x1c" + bytes(100)),
    ],
)
def test_code_in_pickles_is_detected(store: Store, path: str, content: bytes) -> None:
    """In a pickle, in an archive, after harmless content, under any name."""
    with pytest.raises(Unsafe):
        check(store, path, content)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("pytorch_model.bin", HARMLESS),
        ("pytorch_model.bin", TORCH_TAKES),
        ("pytorch_model.bin", zipped("archive/data.pkl", HARMLESS)),
        ("model.bin", struct.pack("<I", 6) + random_bytes("ctranslate2", 100_000)),
        ("config.json", b'{"model_type": "bert"}'),
        ("model.safetensors", random_bytes("safetensors", 100_000)),
        ("empty.bin", b""),
    ],
)
def test_harmless_files_pass_the_scan(store: Store, path: str, content: bytes) -> None:
    """Pickles of tensors, and other content with a pickle's suffix."""
    check(store, path, content)


def test_large_object_does_not_hide_the_code_after_it(store: Store) -> None:
    """It is skipped, not read; one larger than the file ends the pickle, as it does on loading."""
    piece = b"\x80\x04\x8e" + struct.pack("<Q", 5000) + bytes(5000)
    with pytest.raises(Unsafe, match="runs code"):
        check(store, "x.pkl", piece + b"0" + EVIL[2:])
    check(store, "y.pkl", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"0" + EVIL[2:])


@pytest.mark.parametrize("repeated", [b"N", b"\x94"])
def test_pickle_that_would_fill_the_memory_is_refused(store: Store, repeated: bytes) -> None:
    """A byte of a pickle may cost an unpickler more than 100: 20 MB would end the registry."""
    with pytest.raises(Unsafe, match="more opcodes"):
        check(store, "model.bin", b"\x80\x04N" + (MAX_KEPT + 1) * repeated)


def test_opcodes_of_all_entries_of_an_archive_count(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may compress to a thousandth, or be the same bytes many times."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as entries:
        for number in range(3):
            entries.writestr(f"{number}.txt", b"N0" * 20)
    check(store, "a.zip", archive.getvalue())
    monkeypatch.setattr("registry.safety.pickles.MAX_OPCODES", 100)
    with pytest.raises(Unsafe, match=r"contains 2\.txt, which has more opcodes"):
        check(store, "a.zip", archive.getvalue())


def test_read_error_is_not_mistaken_for_a_clean_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps("x" * 100, protocol=0)[:-1] + b"0" + EVIL[2:]
    digest = hashlib.sha256(content).hexdigest()
    store.put_blob(digest, len(content), [content])
    read = store.read_blob

    def fails_later(digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if start:
            raise StoreDown("away")
        yield from read(digest, start, end)

    monkeypatch.setattr(store, "read_blob", fails_later)
    with pytest.raises(StoreDown):
        check_pickles(store, "x.pkl", digest, len(content), window=64)


@pytest.mark.parametrize(
    ("document", "repos"),
    [
        ({"auto_map": {"AutoModel": "modeling.Model"}}, set()),
        ({"auto_map": {"AutoModel": "org/code--modeling.Model"}}, {"org/code"}),
        ({"auto_map": {"AutoTokenizer": ["a/b--tok.Slow", None], "AutoConfig": "me/me--c.C"}}, {"a/b"}),
        ({"auto_map": ["c/d--tok.Slow", None]}, {"c/d"}),
        ({"custom_pipelines": {"x": {"impl": "e/f--pipe.P"}}}, {"e/f"}),
        ([], set()),
        ({"auto_map": 7}, set()),
    ],
)
def test_code_repositories_are_found_in_every_form_of_auto_map(document: object, repos: set[str]) -> None:
    assert code_repos(json.dumps(document).encode(), "me/me") == repos
    assert code_repos(b"{", "me/me") == set()


def test_code_from_an_invalid_repository_name_is_refused() -> None:
    with pytest.raises(BadName, match="auto_map loads code from"):
        code_repos(b'{"auto_map": {"AutoModel": "../../etc--x.Y"}}', "me/me")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A Hub with a model that runs code, one that loads code from another repository, and that repository."""
    library = Library(FileStore(tmp_path / "hub"), Catalogue([]))
    evil = small_repo(tmp_path / "evil")
    (evil / "training.pt").write_bytes(EVIL)
    (evil / "README.md").write_text("---\nlicense: mit\nbase_model: org/base\n---\n")
    user = small_repo(tmp_path / "user")
    (user / "config.json").write_text('{"auto_map": {"AutoModel": "test/code--modeling.Model"}}')
    code = small_repo(tmp_path / "code")
    (code / "modeling.py").write_text("class Model: ...\n")
    for name in ("evil", "user", "code"):
        import_folder(library, tmp_path / name, name=name, repo=f"test/{name}", revision="main", policy=ANYTHING)
    with serving_registry(tmp_path / "hub") as url:
        yield url


def mirrored(url: str, name: str, **body: Any) -> dict[str, Any]:
    plain_http.post(f"{url}/models/{name}/download", json={"hf_repo": f"test/{name}", **body})
    return wait_for_job(url, name)


def test_model_with_unsafe_pickle_is_not_published(hub: str, tmp_path: Path) -> None:
    """It is published without the file, or with PICKLE_FILES=allow."""
    with serving_registry(tmp_path / "m", hf_endpoint=hub) as url:
        model = mirrored(url, "evil", allow_patterns=["*"])
        assert model["status"] == "failed"
        assert "training.pt of test/evil runs code when it is loaded (posix.system)" in model["error"]
        assert "PICKLE_FILES=allow" in model["error"]
        assert plain_http.get(f"{url}/api/models/test/evil").status_code == 404
        assert EVIL not in [path.read_bytes() for path in (tmp_path / "m" / "blobs" / "sha256").iterdir()]
        model = mirrored(url, "evil", ignore_patterns=["*.pt"])
        assert (model["status"], model["license"], model["base_model"]) == ("ready", "mit", ["org/base"])
    with serving_registry(tmp_path / "allowed", hf_endpoint=hub, pickle_files="allow") as url:
        assert mirrored(url, "evil", allow_patterns=["*"])["status"] == "ready"


def test_code_from_another_repository_is_refused_or_mirrored(hub: str, tmp_path: Path) -> None:
    """With REMOTE_CODE=yes, only the code of that repository is mirrored."""
    with serving_registry(tmp_path / "m", hf_endpoint=hub) as url:
        model = mirrored(url, "user")
        assert model["status"] == "failed"
        assert "config.json of test/user loads code from test/code" in model["error"]
        assert plain_http.get(f"{url}/models").json()["models"][0]["status"] == "failed"
    with serving_registry(tmp_path / "allowed", hf_endpoint=hub, remote_code=True) as url:
        assert mirrored(url, "user")["status"] == "ready"
        listed = plain_http.get(f"{url}/api/models/test/code").json()["siblings"]
        assert "modeling.py" in [file["rfilename"] for file in listed]
        assert "model.safetensors" not in [file["rfilename"] for file in listed]
