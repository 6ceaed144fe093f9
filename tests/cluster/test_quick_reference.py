"""Every curl command of docs/quick-reference.md that needs no Docker, run as written."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.programs.cluster import PORTS, ROOT, Quickstart
from tests.support.quick_reference import DOCUMENT, curl_commands

PROMISED = ROOT.parent / "shared" / "quick-reference.md"

# llm-secondary, MinIO and Chat UI run only in Docker.
ELSEWHERE = ("localhost:8001", "localhost:9000", "localhost:9001", "localhost:3000")


def commands() -> list[str]:
    """Return the curl commands for programs of the quickstart."""
    return [command for command in curl_commands() if not any(address in command for address in ELSEWHERE)]


def test_shipped_quick_reference_is_unchanged() -> None:
    if not PROMISED.exists():
        pytest.skip("the original is not beside this checkout")
    assert DOCUMENT.read_text() == PROMISED.read_text()


def test_all_curl_commands_are_extracted() -> None:
    """Including both jq dashboards."""
    found = commands()
    assert len(found) >= 14
    assert sum("jq" in command and "response_ms" in command for command in found) == 1
    assert any(command.endswith('| jq ".services"') for command in found)
    assert [command for command in found if "DELETE" in command] == found[-1:]


@pytest.mark.parametrize("command", commands())
def test_command_works_as_written(cluster: Quickstart, command: str) -> None:
    """It exits with 0 and prints JSON without errors and unexpected nulls."""
    assert shutil.which("jq"), "jq is needed: apt-get install jq"
    if cluster.offset:
        for port in PORTS:
            command = command.replace(f"localhost:{port}", f"localhost:{port + cluster.offset}")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    values = _json_values(done.stdout)
    assert values, f"no output; stderr: {done.stderr}"
    for value in values:
        assert value is not None
        assert not (isinstance(value, dict) and value.get("error")), value
    _check(command, values)


def _json_values(text: str) -> list[object]:
    decoder = json.JSONDecoder()
    values, rest = [], text.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        values.append(value)
        rest = rest[end:].strip()
    return values


def _check(command: str, values: list[object]) -> None:
    """Check the output by the kind of command."""
    first = values[0]
    if "response_ms" in command:
        assert len(values) == 4
        assert all(isinstance(v, dict) and set(v) == {"name", "healthy", "response_ms"} for v in values)
        assert all(v["healthy"] is True and v["response_ms"] > 0 for v in values)  # type: ignore[index]
        return
    assert isinstance(first, dict)
    if "chat/completions" in command:
        assert first["choices"][0]["message"]["content"].strip()
    elif "/v1/embeddings" in command:
        assert len(first["data"][0]["embedding"]) == 384
    elif command.endswith('| jq ".services"'):
        assert set(first) == {"llm-primary", "embedding", "multimodal", "transcription"}
    elif "/download" in command:
        assert first["status"] in ("queued", "downloading")
    elif "DELETE" in command:
        assert "smollm2" in json.dumps(first)
    elif "/models/qwen" in command:
        assert (first["name"], first["status"]) == ("smollm2", "ready")
    elif "8080/services" in command:
        assert first["healthy"] == first["total"] == 4


def test_shipped_copy_matches_the_path_in_the_readme() -> None:
    assert "docs/quick-reference.md" in Path(ROOT / "README.md").read_text()
