"""The official OpenAI client for JavaScript, in Node, through the gateway. npm installs it for the test."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S

# Its client asks for Node 22 by its package.json, and runs with 20 as well.
CLIENT = "openai@7.57.0"
FLOWS = Path(__file__).with_name("openai_client.mjs")
INSTALL_S = 120.0
MAX_BUFFERED = "token0 token1 token2 token3 "

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client installed and the flows beside it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    made = tmp_path_factory.mktemp("openai-js")
    command = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--no-save",
        "--no-package-lock",
        "--prefix",
        str(made),
        CLIENT,
    ]
    try:
        installed = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {CLIENT} within {INSTALL_S:g} s")
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install {CLIENT}: {installed.stderr.strip().splitlines()[-1:]}")
    shutil.copy(FLOWS, made)
    return made


async def test_client_flows(folder: Path, start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Models, a chat, a stream, embeddings, an upload, errors and a stream that is left in the middle."""
    endless = await start_backend("llm-secondary", model="tinyllama", gated=True)
    endless.gate.release()
    gateway = await start_gateway(
        await start_backend(aliases="fast"),
        endless,
        await start_backend("embedding", model="minilm", kind="embedding"),
        await start_backend("transcription", model="whisper", kind="transcription"),
        gateway_api_keys="sesame",
    )
    node = await asyncio.create_subprocess_exec(
        "node",
        folder / FLOWS.name,
        env=os.environ | {"GATEWAY": gateway.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(HANG_S):
        out, err = await node.communicate()
    assert node.returncode == 0, err.decode()
    found = json.loads(out)
    assert {"cluster", "qwen", "tinyllama", "minilm", "whisper"} <= set(found.pop("models"))
    assert found.pop("transcription").endswith("model whisper")
    assert found == {
        "chat": MAX_BUFFERED,
        "served": "qwen",
        "stream": MAX_BUFFERED,
        "embedding": pytest.approx([0.6, 0.8]),
        "unknown": ["NotFoundError", 404, "model_not_found"],
        "stranger": ["AuthenticationError", 401, "invalid_api_key"],
        "before": "token0 ",
    }
    async with asyncio.timeout(HANG_S):
        await endless.requests[0].gone.wait()
    await gateway.until(lambda: gateway.backend("llm-secondary").traffic.in_flight == 0)
