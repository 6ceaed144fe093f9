"""schemathesis against /openapi.json: no request may get a 5xx."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.gateway.conftest import StartBackend, StartGateway

# Relayed routes are described too, but their responses come from a backend.
EXAMPLES = 20
WITHIN_S = 300


@pytest.mark.timeout(WITHIN_S)
@pytest.mark.engines
async def test_no_valid_request_gets_a_5xx(
    start_backend: StartBackend, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Examples, edge cases of every schema, random values, and sequences of calls."""
    gateway = await start_gateway(await start_backend(), log_level="error")
    # It cannot write a sound: /transcribe/{model} is left out.
    options = (
        "--checks=not_a_server_error",
        f"--max-examples={EXAMPLES}",
        "--seed=1",
        "--no-color",
        "--continue-on-failure",
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json", *options,
        "--exclude-path=/transcribe/{model}",
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-6000:]
    assert b"passed" in said
