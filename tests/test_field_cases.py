"""The table of field cases against the tests that it names."""

import ast
import re

from tests.test_source_tree import ROOT

PAGE = ROOT / "docs/field-cases.md"
# The last case of each letter.
CASES = {"G": 12, "S": 5, "R": 7, "C": 6, "X": 19}
ROW = re.compile(r"^\| (?P<case>[GSRCX]\d+) \|(?P<kind>[^|]+)\|(?P<tests>[^|]+)\|(?P<summary>[^|]+)\|$", re.MULTILINE)
TEST_ID = re.compile(r"`(?P<path>tests/[\w/]+\.py)::(?P<name>test_\w+)`")


def missing_tests(text: str) -> list[str]:
    """The rows without a test, and the named tests that no module of ours defines."""
    missing = []
    for row in ROW.finditer(text):
        named = TEST_ID.findall(row["tests"])
        if not named:
            missing.append(row["case"])
        for path, name in named:
            module = ROOT / path
            defined = ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if module.exists() else ()
            if not any(getattr(node, "name", None) == name for node in defined):
                missing.append(f"{path}::{name}")
    return missing


def test_named_tests_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert missing_tests(text) == []
    rows = [line for line in text.splitlines() if re.match(r"\| [GSRCX]\d", line)]
    cases = [f"{letter}{number}" for letter, last in CASES.items() for number in range(1, last + 1)]
    assert [row.split()[1] for row in rows] == cases
    assert [line for line in rows if not ROW.fullmatch(line)] == []


def test_missing_tests_are_found() -> None:
    here = "tests/test_field_cases.py"
    tests = (f"`{here}::test_named_tests_exist`", "none", f"`{here}::test_gone`")
    rows = "\n".join(f"| G{number} | a | {test} | b |" for number, test in enumerate(tests, 1))
    assert missing_tests(rows) == ["G2", f"{here}::test_gone"]
