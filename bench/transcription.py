"""`python -m bench.transcription`: our transcription service against faster-whisper in process and another server.

    python -m bench.transcription                 30 minutes of speech, once per contender: about ten minutes
    python -m bench.transcription --minutes 6     a first look

Each of three rounds takes a third of the recordings: 4 clients send them to our service and then to PyPI's
faster-whisper-server (bench/peers.sh faster-whisper-server), and faster-whisper transcribes the same ones in one
process, batched and sequentially. Meanwhile our /health is polled continuously.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness.clients import LoadResult, measure, request
from bench.harness.load import FOLDER, ROOT
from bench.harness.programs import Program, exit_on_sigterm, free_port, is_healthy
from bench.harness.report import last_line, median_ratio, table
from bench.harness.speech import Recording, recordings, word_errors
from bench.peers.proxies import installed
from quickstart.models.packaged_models import packaged_folder

FIGURES = (
    "vs_batched_in_process", "vs_sequential_in_process", "vs_faster_whisper_server", "wer_points_over_sequential",
    "health_p99_ms",
)  # fmt: skip
PEER = "faster-whisper-server"
CLIENTS = 4
ROUNDS = 3
PATH = "/v1/audio/transcriptions"
BOUNDARY = "bench-boundary"
HEALTH_EVERY_S = 0.02
START_S = 120.0


def main() -> None:
    """Measure, print a table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="total minutes of speech")
    options = parser.parse_args()
    exit_on_sigterm()
    model = packaged_folder("whisper", ROOT / ".cluster" / "packages", lambda _done, _detail: None)
    count = CLIENTS * ROUNDS
    spoken = recordings(count, options.minutes * 60 / count, FOLDER / "speech")
    rates: dict[str, list[float]] = {}
    errors: dict[str, tuple[int, int]] = {}
    health: list[float] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        inside = stack.enter_context(_in_process(model))
        ours = stack.enter_context(_ours(model, Path(folder)))
        peer = stack.enter_context(_peer(model, Path(folder)))
        ports = {"ours": ours} | ({PEER: peer} if peer else {})
        for port in ports.values():  # loads what is loaded lazily, and starts every thread
            measure(port, [_form(spoken[0])], clients=1)
        for number in range(ROUNDS):
            some = spoken[number * CLIENTS : (number + 1) * CLIENTS]
            audio_s = sum(one.seconds for one in some)
            for name, port in ports.items():
                with _asking(ours, health if name == "ours" else []):
                    answers = measure(port, [_form(one) for one in some], clients=CLIENTS)
                rates.setdefault(name, []).append(audio_s / answers.seconds)
                print(f"{name}: {rates[name][-1]:.1f} seconds transcribed per second", file=sys.stderr)
                _count(errors, name, some, _texts(answers))
            for mode in ("batched", "sequential"):
                result = inside([mode, *(str(one.path) for one in some)])
                rates.setdefault(mode, []).append(audio_s / result["seconds"])
                print(f"{mode}: {rates[mode][-1]:.1f} seconds transcribed per second", file=sys.stderr)
                _count(errors, mode, some, result["texts"])
    _tell(rates, errors, health)


def _count(errors: dict[str, tuple[int, int]], name: str, some: Sequence[Recording], texts: Sequence[str]) -> None:
    """Add the word errors of these recordings, each compared with the nearest transcript."""
    wrong, words = errors.get(name, (0, 0))
    for one in some:
        found = min(word_errors(one.text, text) for text in texts)
        wrong, words = wrong + found[0], words + found[1]
    errors[name] = wrong, words


def _texts(answers: LoadResult) -> list[str]:
    return [json.loads(body)["text"] for body in answers.bodies]


def _form(recording: Recording) -> bytes:
    """Return the upload; the language is detected, as in process."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="speech.wav"\r\n\r\n'
    body = head.encode() + recording.path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
    return request(PATH, body, f"multipart/form-data; boundary={BOUNDARY}")


@contextmanager
def _ours(model: Path, folder: Path) -> Iterator[int]:
    """Run our service with its defaults; yield its port."""
    port = free_port()
    env = {
        "MODEL": "whisper",
        "MODEL_DIR": str(model),
        "PORT": str(port),
        "CATALOGUE": str(ROOT / "models.yaml"),
        "LOG_FORMAT": "json",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "services.transcription"]
    with Program(command, env=env, cwd=ROOT, log=folder / "ours.log", start_s=START_S) as program:
        program.wait_until(partial(is_healthy, port), "become healthy")
        yield port


@contextmanager
def _peer(model: Path, folder: Path) -> Iterator[int | None]:
    """Run faster-whisper-server with its defaults; yield its port, or None if it is not installed."""
    if installed(PEER) is None:
        print(f"{PEER} is left out: bench/peers.sh {PEER} installs it", file=sys.stderr)
        yield None
        return
    port = free_port()
    program = str(FOLDER / PEER / "bin" / PEER)
    command = [program, str(model), "--host", "127.0.0.1", "--port", str(port)]
    with Program(command, port=port, env={"HF_HUB_OFFLINE": "1"}, log=folder / "peer.log", start_s=START_S):
        yield port


@contextmanager
def _asking(port: int, latencies: list[float]) -> Iterator[None]:
    """Poll /health continuously; append the latencies in seconds."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(HEALTH_EVERY_S):
            began = time.perf_counter()
            if not is_healthy(port):
                raise RuntimeError("/health failed")
            latencies.append(time.perf_counter() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _in_process(model: Path) -> Iterator[Any]:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "bench.peers.transcription_in_process", str(model)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def answer() -> Mapping[str, Any]:
            line = stdout.readline()
            if not line:
                raise RuntimeError(f"faster-whisper in one process exited with status {process.wait()}")
            result: Mapping[str, Any] = json.loads(line)
            return result

        def ask(command: Sequence[str]) -> Mapping[str, Any]:
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
            return answer()

        try:
            answer()
            yield ask
        finally:
            process.kill()


def _tell(rates: Mapping[str, Sequence[float]], errors: Mapping[str, tuple[int, int]], health: Sequence[float]) -> None:
    wer = {name: 100 * wrong / words for name, (wrong, words) in errors.items()}
    rows = [[name, statistics.median(found), wer[name]] for name, found in rates.items()]
    print(table(["", "seconds transcribed per second", "word errors, %"], rows))
    p99 = sorted(health)[min(int(0.99 * len(health)), len(health) - 1)]
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    figures["vs_batched_in_process"] = median_ratio(rates["ours"], rates["batched"])
    figures["vs_sequential_in_process"] = median_ratio(rates["ours"], rates["sequential"])
    if PEER in rates:
        figures["vs_faster_whisper_server"] = median_ratio(rates["ours"], rates[PEER])
    figures["wer_points_over_sequential"] = wer["ours"] - wer["sequential"]
    figures["health_p99_ms"] = p99 * 1e3
    print(f"{len(health):,} health checks; {PEER}: {installed(PEER) or 'not installed'}")
    print(last_line("transcription", figures))


if __name__ == "__main__":
    main()
