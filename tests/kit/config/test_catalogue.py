"""The catalogue: valid and invalid models.yaml files, error messages, lookup."""

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
    """Every shipped catalogue loads, and every model in it has a description."""
    catalogue = Catalogue.load(path)
    assert len(catalogue) > 0
    assert all(entry.description for entry in catalogue)


def test_shipped_catalogue_has_the_promised_names() -> None:
    """The names and kinds of the quick reference."""
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
def test_find_by_name_alias_or_repository(models_yaml: Path, name: str, found: str | None) -> None:
    """Lookup is exact and case-sensitive."""
    entry = load(models_yaml, GOOD).find(name)
    assert (entry.name if entry else None) == found


def test_resolve_unknown_name_lists_known_names(models_yaml: Path) -> None:
    catalogue = load(models_yaml, GOOD)
    assert catalogue.resolve("embedding").name == "minilm"
    with pytest.raises(ModelNotFound, match="minilm, qwen"):
        catalogue.resolve("gpt-4")


def test_defaults(models_yaml: Path) -> None:
    qwen, minilm = load(models_yaml, GOOD)
    assert (qwen.revision, qwen.aliases, qwen.optional, qwen.allow_patterns) == ("main", (), False, None)
    assert minilm.engine_args == {"dtype": "float32"}
    assert minilm.ignore_patterns == ("*.onnx",)


def test_names_has_no_duplicates(models_yaml: Path) -> None:
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
        ("a: {kind: llm, hf_repo: o/r, default_max_tokens: 0}", "a: default_max_tokens: "),
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
def test_error_names_file_model_and_key(models_yaml: Path, text: str, says: str) -> None:
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
def test_hostile_names_are_rejected(name: str) -> None:
    """Names become part of paths, object keys and URLs."""
    with pytest.raises(ValidationError, match="is not a model name"):
        Entry.model_validate({"name": name, "kind": "llm", "hf_repo": "o/r"})


@pytest.mark.parametrize("name", ["a", "A1", "qwen2.5-0.5b", "a_b", "text-embedding-3-small", "x" * 96])
def test_valid_names(name: str) -> None:
    assert Entry.model_validate({"name": name, "kind": "llm", "hf_repo": "o/r"}).name == name


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "0" * 40, "feature/x", "float16"])
def test_valid_revisions(revision: str) -> None:
    """Commits, branches, tags and pull request refs."""
    assert Entry.model_validate({"name": "a", "kind": "llm", "hf_repo": "o/r", "revision": revision})


def test_all_errors_of_a_model_are_reported(models_yaml: Path) -> None:
    """One line each."""
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
def test_duplicate_key_is_rejected(models_yaml: Path, text: str) -> None:
    """PyYAML itself keeps the last silently."""
    with pytest.raises(SettingsError, match=r"(?s)duplicate key.*line"):
        load(models_yaml, text)


def test_merge_keys_are_no_duplicates(models_yaml: Path) -> None:
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
def test_name_shared_by_two_models_is_rejected(models_yaml: Path, second: str, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(models_yaml, f"a: {{kind: llm, hf_repo: o/r, aliases: [x]}}\n{second}")
    assert str(caught.value).startswith(f"{models_yaml}: a and {second[0]} both use the name {name!r}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "[a, b]", "text", "{}", "null"])
def test_empty_catalogue_is_rejected(models_yaml: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="holds no models"):
        load(models_yaml, text)


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "a: !!python/object/apply:os.system ['true']", "\ta: 1", "a: *b"])
def test_invalid_or_unsafe_yaml_is_rejected(models_yaml: Path, text: str) -> None:
    """The message names file and line."""
    with pytest.raises(SettingsError, match=r"(?s)is not YAML.*line 1"):
        load(models_yaml, text)


def test_binary_file_is_rejected(models_yaml: Path) -> None:
    models_yaml.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not YAML"):
        Catalogue.load(models_yaml)


def test_missing_file_names_path_and_variable(models_yaml: Path) -> None:
    with pytest.raises(SettingsError, match=r"models\.yaml cannot be read: No such file.*Set CATALOGUE"):
        Catalogue.load(models_yaml)


def test_folder_instead_of_file_is_rejected(tmp_path: Path) -> None:
    """Docker creates a folder for a bind mount with a missing source."""
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        Catalogue.load(tmp_path)
