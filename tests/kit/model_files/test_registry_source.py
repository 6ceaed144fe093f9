"""What a service tells of a registry that refuses."""

import pytest

from kit.model_files.registry_source import MAX_REASON, _reason


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error": {"message": "A\\nB\\u001b[1m."}}', ": A B [1m."),
        (b'{"error": {"message": "' + b"x" * 4000 + b'"}}', f": {'x' * MAX_REASON} ..."),
        (b'{"error": {"message": 5}}', "."),
        (b'{"error": "x"}', "."),
        (b"<html>", "."),
        (b"[" * 4096, "."),
        (b"\xff", "."),
        (b"", "."),
    ],
)
def test_a_reason_is_one_short_line(body: bytes, told: str) -> None:
    """Whatever answers in the registry's place: a line of a log, with nothing in it that a terminal obeys."""
    assert _reason(body) == told
