"""Error messages about a registry that refuses a request."""

import pytest

from kit.hub.client import HubRequest
from kit.model_files.registry_source import MAX_REASON, RegistryClient


@pytest.mark.parametrize(
    ("body", "reason"),
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
def test_reason_is_one_short_printable_line(body: bytes, reason: str) -> None:
    """No control characters reach the terminal, whatever the server sends."""
    request = HubRequest("http://r/x", "org/m", "main", "x")
    error = RegistryClient("http://r", None, model="m").refused(request, 500, {}, body)
    assert str(error) == f"The registry at http://r returned 500 for x{reason}"
