"""`python -m bench.embedding`: our embedding service against infinity, and against its own engine without HTTP.

    python -m bench.embedding                     everything, about three minutes
    python -m bench.embedding --seconds 2 --texts 256 --cosines 100     a first look

Two loads: 64 clients with one text per request, in a closed loop; and 64 clients with one request of 32 texts each.
Texts have from 3 to about 200 tokens. All servers (bench/peers.sh installs infinity) run at the same time and take
turns within every round; the others are idle meanwhile.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness.clients import LoadResult, measure, request
from bench.harness.load import FOLDER, ROOT
from bench.harness.programs import exit_on_sigterm, free_port, is_healthy
from bench.harness.report import last_line, median_ratio, table
from bench.peers.embedding_servers import MODEL, Server, infinity, ours
from quickstart.models.packaged_models import packaged_folder

FIGURES = (
    "vs_infinity_torch_1", "vs_infinity_torch_32", "vs_infinity_onnx_1", "vs_infinity_onnx_32",
    "p99_vs_infinity_torch_1", "min_cosine", "vs_best_in_process",
)  # fmt: skip
CLIENTS = 64
TEXTS_PER_REQUEST = 32
# Words per text: log-normal, median 18, from 3 to 160, as questions and paragraphs are.
WORDS = (2.9, 0.6, 3, 160)


@dataclass(frozen=True, slots=True)
class Round:
    """Results of one load on one server. `cpu_s` is the server's CPU time in seconds."""

    load: LoadResult
    texts_per_request: int
    cpu_s: float

    @property
    def rate(self) -> float:
        """Texts per second."""
        return self.load.rate * self.texts_per_request

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per text; comparable even on a busy machine."""
        return 1e3 * self.cpu_s / (len(self.load.latencies) * self.texts_per_request)


Rounds = dict[str, list[Round]]


def main() -> None:
    """Measure, print a table, and the figures as the last line."""
    options = _options()
    exit_on_sigterm()
    model = packaged_folder("minilm", ROOT / ".cluster" / "packages", lambda _done, _detail: None)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        texts = _texts(model, max(options.texts, options.cosines))
        inside = stack.enter_context(_in_process(model, texts, Path(folder)))
        servers = stack.enter_context(_servers(model, Path(folder)))
        ones: Rounds = {name: [] for name in servers}
        many: Rounds = {name: [] for name in servers}
        rates: list[float] = []
        for name, server in servers.items():  # warm up every batch shape and thread
            measure(server.port, _requests(server, texts[:512], 1), clients=CLIENTS)
            print(f"{name} is warm", file=sys.stderr)
        for _ in range(options.rounds):
            for name, server in servers.items():
                ones[name].append(_round(name, server, texts, 1, options.seconds))
            for name, server in servers.items():
                many[name].append(_round(name, server, texts[: options.texts], TEXTS_PER_REQUEST))
            rates.append(max(inside.ask("rate").values()))
        cosine = _least_cosine(servers["ours"], inside, texts[: options.cosines], Path(folder))
    _tell(ones, many, rates, cosine)


def _round(name: str, server: Server, texts: Sequence[str], size: int, seconds: float | None = None) -> Round:
    began = server.program.cpu_seconds()
    load = measure(server.port, _requests(server, texts, size), clients=CLIENTS, seconds=seconds)
    done = Round(load, size, server.program.cpu_seconds() - began)
    print(f"{name}, {CLIENTS} x {size}: {done.rate:.0f} texts/s, {done.cpu_ms:.2f} ms of CPU each", file=sys.stderr)
    return done


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, at least 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds per round of single texts")
    parser.add_argument("--texts", type=int, default=CLIENTS * TEXTS_PER_REQUEST, help="texts per round of lists")
    parser.add_argument("--cosines", type=int, default=1000, help="number of embeddings to compare")
    return parser.parse_args()


def _texts(model: Path, count: int) -> list[str]:
    """Return different texts of words in the model's vocabulary, the same in every run."""
    vocabulary = (model / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = [word for word in vocabulary[2000:12000] if word.isalpha()]
    mu, sigma, least, most = WORDS
    dice = random.Random(5)
    lengths = [max(least, min(most, int(dice.lognormvariate(mu, sigma)))) for _ in range(count)]
    return [" ".join(dice.choices(words, k=length)) for length in lengths]


def _requests(server: Server, texts: Sequence[str], size: int) -> list[bytes]:
    inputs: list[Any] = [list(texts[at : at + size]) for at in range(0, len(texts), size)] if size > 1 else list(texts)
    return [request(server.path, json.dumps({"model": MODEL, "input": one}).encode()) for one in inputs]


@contextmanager
def _servers(model: Path, folder: Path) -> Iterator[dict[str, Server]]:
    """Start our service and the peers with their model. A server that does not start is reported and left out."""
    with ExitStack() as stack:
        started: dict[str, Server] = {}
        makers: dict[str, Callable[[Path, int, Path], Server | None]] = {
            "ours": ours,
            "infinity torch": partial(infinity, "torch"),
            "infinity onnx": partial(infinity, "optimum"),
        }
        for name, make in makers.items():
            port = free_port()
            server = make(model, port, folder)
            if server is None:
                print(f"{name} is left out: bench/peers.sh infinity installs it", file=sys.stderr)
                continue
            stack.enter_context(server.program)
            try:
                server.program.wait_until(partial(is_healthy, port), "become healthy")
            except RuntimeError as error:
                if name == "ours":
                    raise
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            started[name] = server
        yield started


class _Inside:
    """The program `bench.peers.embedding_in_process`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.engine = self._answer()["engine"]

    def ask(self, command: str) -> Mapping[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the model in one process exited with status {self._process.wait()}")
        answer: Mapping[str, Any] = json.loads(line)
        return answer


@contextmanager
def _in_process(model: Path, texts: Sequence[str], folder: Path) -> Iterator[_Inside]:
    path = folder / "texts.json"
    path.write_text(json.dumps(texts))
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "bench.peers.embedding_in_process", str(model), str(path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            yield _Inside(process)
        finally:
            process.kill()


def _least_cosine(server: Server, inside: _Inside, texts: Sequence[str], folder: Path) -> float:
    """Return the lowest cosine of our embeddings to SentenceTransformer.encode's float32 ones, over all texts."""
    import numpy as np

    inside.ask(f"reference {folder / 'reference.npy'}")
    expected = np.load(folder / "reference.npy")[: len(texts)]
    rows: list[Any] = []
    for message in _requests(server, texts, 100):
        answer = measure(server.port, [message], clients=1).bodies[0]
        rows += [item["embedding"] for item in json.loads(answer)["data"]]
    got = np.array(rows)
    return float(((got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)).min())


def _tell(ones: Rounds, many: Rounds, rates: Sequence[float], cosine: float) -> None:
    rows: list[list[object]] = []
    for name in ones:
        p99 = statistics.median(one.load.quantile(0.99) for one in ones[name]) * 1e3
        single, lists = ([statistics.median(_rates(all_)), _cpu_ms(all_)] for all_ in (ones[name], many[name]))
        rows.append([name, *single, p99, *lists])
    rows.append(["in process, best batch", "", "", "", statistics.median(rates), ""])
    heads = ["", "64 x 1, texts/s", "CPU, ms/text", "p99, ms", "64 x 32, texts/s", "CPU, ms/text"]
    print(table(heads, rows))
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    for key, peer in (("torch", "infinity torch"), ("onnx", "infinity onnx")):
        if peer in ones:
            figures[f"vs_infinity_{key}_1"] = median_ratio(_rates(ones["ours"]), _rates(ones[peer]))
            figures[f"vs_infinity_{key}_32"] = median_ratio(_rates(many["ours"]), _rates(many[peer]))
    if "infinity torch" in ones:
        p99s = [[one.load.quantile(0.99) for one in ones[name]] for name in ("ours", "infinity torch")]
        figures["p99_vs_infinity_torch_1"] = median_ratio(*p99s)
    figures["min_cosine"] = round(cosine, 6)
    figures["vs_best_in_process"] = median_ratio(_rates(many["ours"]), rates)
    print(last_line("embedding", figures))


def _rates(rounds: Sequence[Round]) -> list[float]:
    return [one.rate for one in rounds]


def _cpu_ms(rounds: Sequence[Round]) -> float:
    return statistics.median(one.cpu_ms for one in rounds)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    main()
