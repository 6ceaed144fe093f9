"""Hub names: path traversal is rejected, valid names of the Hub are accepted."""

import pytest

from kit.config.hub_names import BadName, check_name, check_path, check_paths, check_repo, check_revision, chosen

HOSTILE_PATHS = [
    *("", "/", "/etc/passwd", "../x", "a/../b", "a/..", "..", ".", "./a", "a/./b", "a//b", "a/", "//a"),
    *("a\\b", "..\\x", "C:/x", "C:x", "a\0b", "a\nb", "a\rb", "\x7f", "a/\u202eb", " a", "a ", "a/ b"),
    *("x" * 241, "/".join(["d" * 100] * 12), "\ud800"),
]
HOSTILE_REPOS = [
    *("", "/", "a/", "/a", "a/b/c", "..", "../..", "a/..", "../a", "a/.b", ".a/b", "-a/b", "a b", "a/b\n", "a\0/b"),
    *("a--b", "org/na--me", "a..b", "a%2Fb", "a/b?x", "a/b#x", "ä/b", "a" * 97, "org/" + "a" * 97, "a\\b"),
]
HOSTILE_REVISIONS = [
    "",
    "..",
    "../main",
    "a/../b",
    "/main",
    "main/",
    "a//b",
    "-x",
    "a b",
    "a\n",
    "x.lock",
    "a\\b",
    "a" * 201,
    "~1",
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_hostile_paths_are_rejected(path: str) -> None:
    """Absolute, with traversal, unprintable, or too long for a disk or bucket."""
    with pytest.raises(BadName):
        check_path(path)


@pytest.mark.parametrize(
    "path", ["config.json", "1_Pooling/config.json", ".gitattributes", "a b/ü (1).bin", "a..b", "…"]
)
def test_valid_paths(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize("repo", HOSTILE_REPOS)
def test_hostile_repositories_are_rejected(repo: str) -> None:
    with pytest.raises(BadName):
        check_repo(repo)


@pytest.mark.parametrize("repo", ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "a/b_c.d-e", "0x/1"])
def test_valid_repositories(repo: str) -> None:
    """With and without an organisation."""
    assert check_repo(repo) == repo


@pytest.mark.parametrize("revision", HOSTILE_REVISIONS)
def test_hostile_revisions_are_rejected(revision: str) -> None:
    """By the rules of git check-ref-format."""
    with pytest.raises(BadName):
        check_revision(revision)


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0", "0" * 40, "release+1"])
def test_valid_revisions(revision: str) -> None:
    """Branches, tags, pull requests, commits."""
    assert check_revision(revision) == revision


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".a", "a..b", "x" * 97, "a\n"])
def test_hostile_names_are_rejected(name: str) -> None:
    with pytest.raises(BadName):
        check_name(name)


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["x/y", "x/y/z/w"]])
def test_conflicting_paths_are_rejected(paths: list[str]) -> None:
    """Duplicate paths, and a file that is the folder of another."""
    with pytest.raises(BadName):
        check_paths(paths)


@pytest.mark.parametrize(
    ("allow", "ignore", "left"),
    [
        (None, None, ["a.json", "b.bin", "d/c.json"]),
        (["*.json"], None, ["a.json", "d/c.json"]),
        (["d/"], None, ["d/c.json"]),
        (None, ["*.bin", "d/*"], ["a.json"]),
        (["*.json"], ["d/"], ["a.json"]),
        ([], None, []),
    ],
)
def test_patterns_match_as_in_the_hub_client(
    allow: list[str] | None, ignore: list[str] | None, left: list[str]
) -> None:
    """fnmatch over the whole path; `folder/` matches everything below."""
    assert chosen(["a.json", "b.bin", "d/c.json"], allow, ignore) == left
