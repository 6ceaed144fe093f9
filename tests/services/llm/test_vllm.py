"""Real vLLM inside the service, as a process of its own: OpenAI's routes at its full strength, and a clean end."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.services.llm.serving import wait_until_loaded

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed in this environment"),
]

ROOT = Path(__file__).resolve().parents[3]
JAPAN: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
MODEL = "small"
ENDED_WITHIN_S = 60


class Process:
    """`python -m services.llm` with vLLM, in a session of its own so that what it leaves behind can be seen."""

    def __init__(self, folder: Path, model: Path) -> None:
        catalogue = folder / "models.yaml"
        entry = {"kind": "llm", "hf_repo": "org/tiny", "aliases": ["small"], "context_length": 2048}
        catalogue.write_text(json.dumps({"tiny": entry}))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        settings = {
            "CATALOGUE": str(catalogue),
            "MODEL": "tiny",
            "MODEL_DIR": str(model),
            "ENGINE": "vllm",
            "PORT": str(self.port),
            "LOG_FORMAT": "json",
        }
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.llm"],
                cwd=ROOT,
                env=os.environ | settings,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def members(self) -> list[int]:
        """Every living process of the session."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                # After the name in brackets: state, parent, group, session.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (OSError, NotADirectoryError):
                continue
            if fields[3] == str(self.process.pid) and fields[0] != "Z":
                found.append(int(entry.name))
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(ENDED_WITHIN_S)

    def kill(self) -> None:
        for member in self.members():
            os.kill(member, signal.SIGKILL)
        self.process.wait(ENDED_WITHIN_S)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("vllm"), smollm2)
    try:
        wait_until_loaded(process.url)
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def client(running: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def test_chat_whole_and_streamed_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=JAPAN, temperature=0)
    assert "Tokyo" in (whole.choices[0].message.content or "")
    stream = client.chat.completions.create(
        model=MODEL, messages=JAPAN, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "Tokyo" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None


def test_what_only_this_engine_can_do(client: openai.OpenAI) -> None:
    """Log probabilities, several answers, and JSON by a schema."""
    answer = client.chat.completions.create(
        model=MODEL, messages=JAPAN, n=2, logprobs=True, top_logprobs=2, max_tokens=4, temperature=1
    )
    assert len(answer.choices) == 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 2
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Tokyo", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    shaped = client.chat.completions.create(
        model=MODEL,
        messages=JAPAN,
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    assert json.loads(shaped.choices[0].message.content or "")["city"] in ("Tokyo", "Oslo")


def test_completions_and_responses(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="The capital of Japan is", max_tokens=4, temperature=0)
    assert "Tokyo" in text.choices[0].text
    answer = client.responses.create(model=MODEL, input="What is the capital of Japan?", temperature=0)
    assert "Tokyo" in answer.output_text


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=JAPAN)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=[])


def test_own_paths_and_vllms_metrics_on_one_page(running: Process) -> None:
    with httpx2.Client(base_url=running.url) as raw:
        health = raw.get("/health").json()
        assert (health["engine"], health["model"]) == ("vllm", "tiny")
        assert [one["id"] for one in raw.get("/v1/models").json()["data"]] == ["tiny", "small", "org/tiny"]
        page = raw.get("/metrics").text
        assert "vllm:num_requests_running" in page
        assert "http_requests_total" in page


def test_a_stop_leaves_no_process(running: Process) -> None:
    """Runs last in this module: it ends the service that the other tests use."""
    assert len(running.members()) > 1
    running.stop()
    assert running.members() == []
    assert "EngineDeadError" not in running.log.read_text()


def test_a_stop_in_the_middle_of_the_load_leaves_no_process(tmp_path: Path, smollm2: Path) -> None:
    process = Process(tmp_path, smollm2)
    pause = threading.Event()
    try:
        while len(process.members()) < 3:
            assert process.process.poll() is None, process.log.read_text()
            pause.wait(0.2)
        process.stop()
        assert process.members() == []
    finally:
        process.kill()


def test_a_wrong_argument_is_told_by_its_name(tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_ARGS", '{"no_such_argument": 1}')
    process = Process(tmp_path, smollm2)
    pause = threading.Event()
    try:
        with httpx2.Client(base_url=process.url) as raw:
            for _ in range(300):
                try:
                    health = raw.get("/health").json()
                except httpx2.ConnectError:
                    health = {"status": "starting"}
                if health["status"] == "failed":
                    break
                pause.wait(0.2)
        assert "no-such-argument" in health["detail"]
        process.stop()
        assert process.members() == []
    finally:
        process.kill()
