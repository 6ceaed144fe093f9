"""The catalogue: what a models.yaml may hold, how its mistakes read, and how models are found."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from kit.config.catalogue import Catalogue, Entry
from kit.config.settings import SettingsError
from kit.errors import ModelNotFound

ROOT = Path(__file__).resolve().parents[3]

GOOD = """
qwen: {kind: llm, hf_repo: Qwen/Qwen2.5-0.5B-Instruct, supports_tools: true, context_length: 32768}
minilm:
  kind: embedding
  hf_repo: sentence-transformers/all-MiniLM-L6-v2
  revision: 1110a243fdf4706b3f48f1d95db1a4f5529b4d41
  aliases: [embedding, text-embedding-3-small]
  engine_args: {dtype: float32}
  ignore_patterns: ["*.onnx"]
"""


@pytest.fixture
def models_yaml(tmp_path: Path) -> Path:
    return tmp_path / "models.yaml"


def load(path: Path, text: str) -> Catalogue:
    path.write_text(text, encoding="utf-8")
    return Catalogue.load(path)


SHIPPED = [path for path in (ROOT / "models.yaml", ROOT / "quickstart" / "models.yaml") if path.exists()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_catalogues_are_valid(path: Path) -> None:
    """What we ship loads, and every model in it is described."""
    catalogue = Catalogue.load(path)
    assert len(catalogue) > 0
    assert all(entry.description for entry in catalogue)


def test_shipped_catalogue_has_the_promised_names() -> None:
    """The names of the quick reference, with their kinds."""
    kinds = {entry.name: entry.kind for entry in Catalogue.load(ROOT / "models.yaml")}
    assert kinds == {
        "qwen": "llm",
        "tinyllama": "llm",
        "llava": "multimodal",
        "minilm": "embedding",
        "whisper": "transcription",
    }


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("qwen", "qwen"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen"),
        ("minilm", "minilm"),
        ("embedding", "minilm"),
        ("text-embedding-3-small", "minilm"),
        ("sentence-transformers/all-MiniLM-L6-v2", "minilm"),
        ("QWEN", None),
        ("qwen ", None),
        ("cluster", None),
        ("", None),
        ("all-MiniLM-L6-v2", None),
    ],
)
def test_find(models_yaml: Path, name: str, found: str | None) -> None:
    """A model goes by its name, its aliases and its repository, spelled exactly; never by a near miss."""
    entry = load(models_yaml, GOOD).find(name)
    assert (entry.name if entry else None) == found


def test_resolve_lists_what_there_is(models_yaml: Path) -> None:
    """An unknown name is a 404 that lists the names."""
    catalogue = load(models_yaml, GOOD)
    assert catalogue.resolve("embedding").name == "minilm"
    with pytest.raises(ModelNotFound, match="minilm, qwen"):
        catalogue.resolve("gpt-4")


def test_defaults(models_yaml: Path) -> None:
    """Kind and repository suffice."""
    qwen, minilm = load(models_yaml, GOOD)
    assert (qwen.revision, qwen.aliases, qwen.optional, qwen.allow_patterns) == ("main", (), False, None)
    assert minilm.engine_args == {"dtype": "float32"}
    assert minilm.ignore_patterns == ("*.onnx",)


def test_names_are_listed_once(models_yaml: Path) -> None:
    """An alias that repeats itself or the model's own name does not show twice in /v1/models."""
    (entry,) = load(models_yaml, "a: {kind: llm, hf_repo: o/r, aliases: [a, b, b]}")
    assert entry.names == ("a", "b", "o/r")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: {hf_repo: o/r}", "a: kind: Field required"),
        ("a: {kind: llm}", "a: hf_repo: Field required"),
        ("a: {kind: chat, hf_repo: o/r}", "a: kind: Input should be 'llm', 'multimodal'"),
        ("a: {kind: llm, hf_repo: r}", "a: hf_repo: 'r' is not a repository"),
        ("a: {kind: llm, hf_repo: o/r/s}", "a: hf_repo: 'o/r/s' is not a repository"),
        ("a: {kind: llm, hf_repo: https://host/o/r}", "a: hf_repo: "),
        ("a: {kind: llm, hf_repo: o/..}", "a: hf_repo: "),
        ("a: {kind: llm, hf_repo: ../r}", "a: hf_repo: "),
        ("a: {kind: llm, hf_repo: o--x/r}", "a: hf_repo: "),
        ("a: {kind: llm, hf_repo: /r}", "a: hf_repo: "),
        ('a: {kind: llm, hf_repo: "o/r\\n"}', "a: hf_repo: "),
        ("a: {kind: llm, hf_repo: 7}", "a: hf_repo: Input should be a valid string (got 7)"),
        ("a: {kind: llm, hf_repo: o/r, revision: ''}", "a: revision: "),
        (
            "a: {kind: llm, hf_repo: o/r, revision: 1234567}",
            "a: revision: Input should be a valid string (got 1234567)",
        ),
        ("a: {kind: llm, hf_repo: o/r, revision: ../../x}", "a: revision: "),
        ("a: {kind: llm, hf_repo: o/r, revision: 'a b'}", "a: revision: "),
        ("a: {kind: llm, hf_repo: o/r, revision: a//b}", "a: revision: "),
        ("a: {kind: llm, hf_repo: o/r, revision: 'a?b=c'}", "a: revision: "),
        ("a: {kind: llm, hf_repo: o/r, aliases: b}", "a: aliases: "),
        ("a: {kind: llm, hf_repo: o/r, aliases: [b, 7]}", "a: aliases.1: "),
        ("a: {kind: llm, hf_repo: o/r, aliases: [b/c]}", "a: aliases: 'b/c' is not a model name"),
        ("a: {kind: llm, hf_repo: o/r, aliases: [cluster]}", "a: aliases: 'cluster' is reserved"),
        ("a: {kind: llm, hf_repo: o/r, fallbacks: b}", "a: fallbacks: "),
        ("a: {kind: llm, hf_repo: o/r, fallbacks: [b]}", "a: fallbacks: unknown model 'b'"),
        ("a: {kind: llm, hf_repo: o/r, aliases: [b], fallbacks: [b]}", "a: fallbacks: 'b' is the model itself"),
        (
            "a: {kind: llm, hf_repo: o/r, fallbacks: [b]}\nb: {kind: embedding, hf_repo: o/s}",
            "a: fallbacks: 'b' is of kind embedding and cannot replace",
        ),
        ("cluster: {kind: llm, hf_repo: o/r}", "cluster: name: 'cluster' is reserved"),
        ("a: {kind: llm, hf_repo: o/r, context_length: 0}", "a: context_length: "),
        ("a: {kind: llm, hf_repo: o/r, context_length: long}", "a: context_length: "),
        ("a: {kind: llm, hf_repo: o/r, optional: perhaps}", "a: optional: "),
        ("a: {kind: llm, hf_repo: o/r, engine_args: fast}", "a: engine_args: "),
        ("a: {kind: llm, hf_repo: o/r, hf-repo: o/s}", "a: hf-repo: Extra inputs are not permitted"),
        ("a: {kind: llm, hf_repo: o/r, context: 5}", "a: context: Extra inputs are not permitted"),
        ("a: {kind: llm, hf_repo: o/r, name: b}", "a: name: not a key here"),
        ("a: o/r", "a: expected {kind, hf_repo, ...}, got 'o/r'"),
        ("a:", "a: expected {kind, hf_repo, ...}, got None"),
        ("7: {kind: llm, hf_repo: o/r}", "7 is a int in YAML"),
        ("on: {kind: llm, hf_repo: o/r}", "True is a bool in YAML; put the model's name into quotes"),
        ("null: {kind: llm, hf_repo: o/r}", "None is a NoneType in YAML"),
    ],
)
def test_mistakes_name_file_model_and_key(models_yaml: Path, text: str, says: str) -> None:
    """A mistake can be found without reading the code."""
    with pytest.raises(SettingsError) as caught:
        load(models_yaml, text)
    assert str(caught.value).startswith(f"{models_yaml}: {says}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "a/b",
        "a\\b",
        "-a",
        "_a",
        ".a",
        "a b",
        "a\n",
        "a\x00",
        "a..b",
        "é",
        "名",
        "a:b",
        "a?b",
        "a#b",
        "a%2fb",
        "x" * 97,
    ],
)
def test_hostile_names_are_refused(name: str) -> None:
    """A name becomes part of paths, keys and URLs: none can hide a path or break a line."""
    with pytest.raises(ValidationError, match="is not a model name"):
        Entry.model_validate({"name": name, "kind": "llm", "hf_repo": "o/r"})


@pytest.mark.parametrize("name", ["a", "A1", "qwen2.5-0.5b", "a_b", "text-embedding-3-small", "x" * 96])
def test_names(name: str) -> None:
    """Names as people give them."""
    assert Entry.model_validate({"name": name, "kind": "llm", "hf_repo": "o/r"}).name == name


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "0" * 40, "feature/x", "float16"])
def test_revisions(revision: str) -> None:
    """Commits, branches, tags and the Hub's pull requests."""
    assert Entry.model_validate({"name": "a", "kind": "llm", "hf_repo": "o/r", "revision": revision})


def test_all_mistakes_of_a_model_are_told(models_yaml: Path) -> None:
    """A line each."""
    with pytest.raises(SettingsError) as caught:
        load(models_yaml, "a: {kind: chat, contxt: 5}")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    "text",
    [
        "a: {kind: llm, hf_repo: o/r}\na: {kind: llm, hf_repo: o/s}",
        "'a': {kind: llm, hf_repo: o/r}\na: {kind: llm, hf_repo: o/s}",
        "a: {kind: llm, hf_repo: o/r, kind: embedding}",
        "a:\n  kind: llm\n  hf_repo: o/r\n  engine_args: {x: 1, x: 2}",
    ],
)
def test_key_that_stands_twice(models_yaml: Path, text: str) -> None:
    """Plain YAML would silently keep the last; that loses a model, so it is refused with the place."""
    with pytest.raises(SettingsError, match=r"(?s)duplicate key.*line"):
        load(models_yaml, text)


def test_merge_keys_work(models_yaml: Path) -> None:
    """Anchors save repetition; several merges into one model are no key twice."""
    text = "a: &a {kind: llm, hf_repo: o/r}\nb: {<<: *a, hf_repo: o/s}"
    assert [entry.hf_repo for entry in load(models_yaml, text)] == ["o/r", "o/s"]


@pytest.mark.parametrize(
    ("second", "name"),
    [
        ("b: {kind: llm, hf_repo: o/r}", "o/r"),
        ("b: {kind: llm, hf_repo: o/s, aliases: [a]}", "a"),
        ("b: {kind: llm, hf_repo: o/s, aliases: [x]}", "x"),
        ("x: {kind: llm, hf_repo: o/s}", "x"),
    ],
)
def test_two_models_with_one_name(models_yaml: Path, second: str, name: str) -> None:
    """A name, alias or repository belongs to one model; the message names file, models and name."""
    with pytest.raises(SettingsError) as caught:
        load(models_yaml, f"a: {{kind: llm, hf_repo: o/r, aliases: [x]}}\n{second}")
    assert str(caught.value).startswith(f"{models_yaml}: a and {second[0]} both use the name {name!r}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "[a, b]", "text", "{}", "null"])
def test_no_models(models_yaml: Path, text: str) -> None:
    """An empty file is a mistake too."""
    with pytest.raises(SettingsError, match="holds no models"):
        load(models_yaml, text)


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "a: !!python/object/apply:os.system ['true']", "\ta: 1", "a: *b"])
def test_not_yaml(models_yaml: Path, text: str) -> None:
    """Broken YAML, and YAML that would run code, names file and line."""
    with pytest.raises(SettingsError, match=r"(?s)is not YAML.*line 1"):
        load(models_yaml, text)


def test_not_text(models_yaml: Path) -> None:
    """A binary file in the place of the catalogue."""
    models_yaml.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not YAML"):
        Catalogue.load(models_yaml)


def test_missing_file(models_yaml: Path) -> None:
    """The message names the path and the variable."""
    with pytest.raises(SettingsError, match=r"models\.yaml cannot be read: No such file.*Set CATALOGUE"):
        Catalogue.load(models_yaml)


def test_folder_in_its_place(tmp_path: Path) -> None:
    """Docker makes a folder of a bind mount whose source is missing."""
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        Catalogue.load(tmp_path)
