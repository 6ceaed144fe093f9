"""The documentation against the tree: module paths, links, commands and the table of allowed imports."""

import ast
import re
from pathlib import Path

import pytest

from tests.test_source_tree import ROOT, tracked
from tests.test_structure import ALLOWED, SHIPPED

DOCUMENTS = [path for path in tracked("*.md") if path.name != "quick-reference.md"]
MAPS = [ROOT / "docs/design.md", ROOT / "docs/glossary.md", ROOT / "CONTRIBUTING.md"]
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}
SUFFIXES = (".py", ".sh", ".md", ".yml", ".yaml", ".html", ".toml", ".txt", ".json", ".env", ".c")
QUOTED = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?)`")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def missing_paths(text: str, root: Path = ROOT) -> list[str]:
    """The paths in backticks, `.py` optional, that exist neither below `root` nor below the folder of their heading."""
    missing, base = [], root
    for line in FENCED.sub("", text).splitlines():
        quoted = QUOTED.findall(line)
        if line.startswith("#"):
            base = next((root / name for name in quoted if (root / name).is_dir()), root)
        for name in quoted:
            is_path = "/" in name and name.split("/")[0] in FOLDERS
            exists = any((folder / each).exists() for folder in (root, base) for each in (name, f"{name}.py"))
            if (is_path or name.endswith(SUFFIXES)) and not exists:
                missing.append(name)
    return missing


def broken_links(path: Path) -> list[str]:
    """The relative links of a document that lead nowhere."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCED.sub("", path.read_text(encoding="utf-8")))
    return [target for target in targets if "://" not in target and not (path.parent / target).exists()]


@pytest.mark.parametrize("path", [*MAPS, *sorted((ROOT / "docs/decisions").glob("*.md"))], ids=lambda path: path.name)
def test_named_paths_exist(path: Path) -> None:
    assert missing_paths(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    assert broken_links(path) == []


def test_missing_paths_and_broken_links_are_found(tmp_path: Path) -> None:
    text = "# Part `gateway/`\n`relay/gone.py` `gateway/relay/` `gateway/gone` `app.py` `/v1/models` [x](gone.md#y)\n"
    assert missing_paths(text) == ["relay/gone.py", "gateway/gone"]
    document = tmp_path / "a.md"
    document.write_text(text)
    assert broken_links(document) == ["gone.md"]


def test_every_package_is_on_the_map() -> None:
    """docs/design.md names each folder of modules, so that none has to be found by chance."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT) for name in SHIPPED for path in (ROOT / name).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if f"`{folder}/`" not in text] == []


def test_documented_modules_can_be_run() -> None:
    runnable = re.compile(rf"\bpython -m ((?:{'|'.join((*SHIPPED, 'bench'))})(?:\.[a-z_]+)*)\b")
    modules = {name for path in DOCUMENTS for name in runnable.findall(path.read_text(encoding="utf-8"))}
    assert modules
    paths = {name: ROOT.joinpath(*name.split(".")) for name in modules - {"bench"}}
    missing = [
        name
        for name, path in paths.items()
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()
    ]
    assert missing == []


def test_contributing_shows_the_table_of_allowed_imports() -> None:
    """One table, written for people there and for the check in tests/test_structure.py."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `([\w./]+)` \| ([^|]*) \|$", text, re.MULTILINE))
    expected = {
        f"{program}/{name}": "everything in its program" if row == "*" else ", ".join(row.split()) or "nothing"
        for program, rows in ALLOWED.items()
        for name, row in rows.items()
    }
    assert shown == expected


def test_quoted_messages_in_troubleshooting_are_those_of_the_code() -> None:
    """Each quoted message occurs in a string of the shipped code; `...` stands for a value."""
    texts = "\n".join(
        node.value
        for name in SHIPPED
        for path in (ROOT / name).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    document = re.sub(r"`[^`]*`", "", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))
    messages = [
        text for row in re.findall(r"^\|(.*)", document, re.MULTILINE) for text in re.findall(r'"([^"]+)"', row)
    ]
    assert len(messages) > 5
    parts = [part.strip(" :") for text in messages for part in re.split(r"\.\.\.|\b\d+\b", text)]
    assert [part for part in parts if part not in texts] == []
