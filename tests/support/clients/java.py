"""The HTTP client of the JDK, run as a program (`JavaClient.java`, launched from its source)."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("JavaClient.java")
WITHIN_S = 120

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no JDK: apt-get install openjdk-17-jdk-headless")


async def run_flows(**urls: str) -> dict[str, tuple[int, str]]:
    """Run each flow, with `_` for `-` in its name, against its URL; return status and body of each response.

    Raises AssertionError if a response is not HTTP/1.1, or the program fails.
    """
    flows = [f"{name.replace('_', '-')}={url.rstrip('/')}" for name, url in urls.items()]
    java = await asyncio.create_subprocess_exec(
        "java", PROGRAM, *flows, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(WITHIN_S):
        out, err = await java.communicate()
    assert java.returncode == 0, err.decode()
    found = {}
    for line in out.decode().splitlines():
        flow, status, version, body = line.split("\t")
        assert version == "HTTP_1_1"
        found[flow] = (int(status), body)
    return found


def ok(found: dict[str, tuple[int, str]], flow: str) -> Any:
    """Return the JSON of a response with status 200."""
    status, body = found[flow]
    assert status == 200, body
    return json.loads(body)
