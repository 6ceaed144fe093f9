"""Hub names: path traversal is rejected, valid names of the Hub are accepted."""

import re
import subprocess

import pytest

from kit.config.hub_names import BadName, check_name, check_path, check_paths, check_repo, check_revision, chosen

HOSTILE_PATHS = [
    *("", "/", "/etc/passwd", "../x", "a/../b", "a/..", "..", ".", "./a", "a/./b", "a//b", "a/", "//a"),
    *("a\\b", "..\\x", "C:/x", "C:x", "a\0b", "a\nb", "a\rb", "\x7f", "a/\u202eb", "a\u2066b", "a\u2028b", "\x85"),
    *("x" * 241, "/".join(["d" * 100] * 12), "\ud800", ".git/hooks/post-checkout", "a/.GIT/config"),
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
    "a" * 241,
    "~1",
    *("a\u202eb", "a^b", "a:b", "a?", "*", "a[b", "@{1}", "@", ".a", "a/.b", "a.lock/b", "a.", "\x7f", "ä" * 41),
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_hostile_paths_are_rejected(path: str) -> None:
    """Absolute, with traversal, unprintable, or too long for a disk or bucket."""
    with pytest.raises(BadName):
        check_path(path)


VALID_PATHS = [
    *("config.json", "1_Pooling/config.json", ".gitattributes", ".gitignore", "a b/ü (1).bin", "a..b", "…", "a/...b"),
    *("assets/Screenshot 2024-05-01 at 3.05.12\u202fPM.png", "a\u00a0b", "日本\u3000語.txt", " a", "a ", "a/ b"),
    *("👩\u200d🔬.png", "\ufeffx", "a\u00adb", "\ue000", "\U0001fbff", "a\u200fb", "e\u0301", "3:05.png", "ab:c", "-x"),
    *("'\"`$(x);&|<>*?[]{}!#%^~=+,@", "NUL", "x" * 240),
]


@pytest.mark.parametrize("path", VALID_PATHS)
def test_valid_paths(path: str) -> None:
    """R3: what git and the Hub accept: spaces of every kind, joiners, private and unassigned characters, colons."""
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\u202eb", "it contains U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("a\nb", "it contains U+000A (no name)"),
        ("a\\b", "it contains U+005C REVERSE SOLIDUS"),
        ("\ud800", "it contains U+D800 (no name)"),
        ("../x", "it has a part '.', '..' or '.git'"),
        ("/x", "it is empty or absolute"),
        ("C:x", "it begins with a drive letter"),
        ("x" * 241, "a part is longer than 240 bytes"),
    ],
)
def test_rejected_path_names_the_reason(path: str, reason: str) -> None:
    """R3: the character by its code point and name."""
    with pytest.raises(BadName, match=re.escape(reason)):
        check_path(path)


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


@pytest.mark.parametrize(
    "revision",
    [
        *(
            "main",
            "refs/pr/1",
            "v1.0",
            "0" * 40,
            "release+1",
            "_x",
            "feature/#12",
            "v1@beta",
            "größe",
            "a=b,c",
            "日本語",
        ),
        *("user's", "a!b", "{x}", "50%", "a&b;c"),
    ],
)
def test_valid_revisions(revision: str) -> None:
    """R3: branches, tags, pull requests, commits, by the rules of git check-ref-format."""
    assert check_revision(revision) == revision


def test_git_accepts_and_rejects_the_same_revisions() -> None:
    """Except what misleads a reader, what could be an option, and what is too long for a file name."""
    for revision in ("main", "feature/#12", "größe", "_x", "50%", "a b", "@", "a.lock/b", "a:b", "x.", "a//b", "@{1}"):
        done = subprocess.run(["git", "check-ref-format", f"refs/heads/{revision}"], check=False)
        bare = revision != "@"  # `@` alone is rejected as a branch by `git branch`
        try:
            accepted = check_revision(revision) == revision
        except BadName:
            accepted = False
        assert accepted == (done.returncode == 0 and bare), revision


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
