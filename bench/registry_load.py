"""`python -m bench.registry_load`: `snapshot_download` through the registry as a mirror, and through olah.

Cold: nothing is there yet, and the registry mirrors what is asked for (MIRROR_MISSING). Warm: once more, by another
client. Four at once, cold: what is read from the source is counted. And with the source gone. The reference is the
same download from the source itself, in the same round.

Source, registry and clients share this machine's cores, and loopback carries more than they can: a cold download,
which moves every byte twice, is bound by the CPU here. So the table has how many cores were busy, what four clients
cost where nothing is cold, and all once more over a link of 1 Gbit/s
(`bench.sources.slow_line`). The figures are those of loopback.

`--olah` is olah-cli of an environment of its own, as it wants other versions of what we use:
`python -m venv DIR && DIR/bin/pip install olah`.
"""

import argparse
import contextlib
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from bench.harness.programs import Program, end_when_told, free_port
from bench.harness.report import Figures, last_line, median_ratio, table
from bench.registry import FILES, REPO, ROOT, SNAPSHOT, timed
from bench.sources.slow_line import Line
from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore

CLIENTS = 4
LINE_BYTES_PER_SECOND = 1e9 / 8
LINE = ", 1 Gbit/s"


class Site:
    """The source, and a folder for all that comes and goes."""

    def __init__(self, folder: Path, olah: str | None) -> None:
        self.folder = folder
        self.olah = olah
        self.log = folder / "source.log"
        self._numbers = itertools.count()

    def fresh(self) -> Path:
        """A folder that was not there before."""
        folder = self.folder / f"new-{next(self._numbers)}"
        folder.mkdir()
        return folder

    def reads(self) -> int:
        """How many answers with contents the source has given so far."""
        return sum("/resolve/" in line and "GET" in line for line in self.log.read_text().splitlines())

    @contextlib.contextmanager
    def source(self) -> Iterator[str]:
        """The registry that plays the Hub."""
        with self._registry({"STORE": f"file:{self.folder / 'source'}"}, self.log) as url:
            yield url

    @contextlib.contextmanager
    def behind_a_line(self, source: str) -> Iterator[str]:
        """The source, as it is reached through a line of bounded speed."""
        with Line(int(source.rpartition(":")[2]), LINE_BYTES_PER_SECOND) as line:
            yield line.url

    @contextlib.contextmanager
    def ours(self, source: str) -> Iterator[str]:
        """A registry with nothing in it."""
        home = self.fresh()
        (home / "models.yaml").write_text(f"m: {{kind: llm, hf_repo: {REPO}}}\n")
        env = {"STORE": f"file:{home / 'store'}", "HF_ENDPOINT": source, "MIRROR_MISSING": "yes"}
        with self._registry(env | {"CATALOGUE": str(home / "models.yaml")}, home / "log") as url:
            yield url

    @contextlib.contextmanager
    def olah_mirror(self, source: str) -> Iterator[str]:
        """An olah with nothing in it."""
        port, home, upstream = free_port(), self.fresh(), source.removeprefix("http://")
        own = f"127.0.0.1:{port}"
        command = [
            *(str(self.olah), "--host", "127.0.0.1", "--port", str(port), "--repos-path", str(home / "repos")),
            *("--log-path", str(home / "logs"), "--hf-scheme", "http", "--hf-netloc", upstream),
            *("--hf-lfs-netloc", upstream, "--mirror-scheme", "http", "--mirror-netloc", own),
            *("--mirror-lfs-netloc", own),
        ]
        with Program(command, port=port, cwd=home, log=home / "log"):
            yield f"http://{own}"

    @contextlib.contextmanager
    def _registry(self, env: dict[str, str], log: Path) -> Iterator[str]:
        port = free_port()
        env = {**env, "PORT": str(port), "PYTHONPATH": str(ROOT)}
        with Program([sys.executable, "-m", "registry"], port=port, env=env, cwd=self.folder, log=log):
            yield f"http://127.0.0.1:{port}"

    def download(self, endpoint: str) -> float:
        """Seconds that one client takes. Raises RuntimeError when it fails."""
        with tempfile.TemporaryDirectory(dir=self.folder) as home:
            env = {"HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            try:
                return timed(SNAPSHOT, REPO, f"{home}/model", env=env | {"HF_HUB_DISABLE_TELEMETRY": "1"})
            except subprocess.CalledProcessError as error:
                raise RuntimeError(error.stderr.decode()[-1000:]) from error

    def at_once(self, endpoint: str) -> float:
        """Seconds until the last of four clients has it."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            return max(pool.map(self.download, [endpoint] * CLIENTS))


@dataclass
class Round:
    """What was measured once."""

    seconds: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)
    """How many cores were busy meanwhile, with whatever."""
    source_reads: dict[str, int] = field(default_factory=dict)

    def measure(self, name: str, site: Site, download: Callable[[], float]) -> None:
        """Let it download, and note what it took."""
        reads, before, began = site.reads(), _busy_seconds(), time.monotonic()
        self.seconds[name] = download()
        # The start of the client's program is in here, and not in its own seconds.
        self.cores[name] = (_busy_seconds() - before) / (time.monotonic() - began)
        self.source_reads[name] = site.reads() - reads


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def play(site: Site) -> Round:
    """One round."""
    played = Round()
    with site.source() as source, site.behind_a_line(source) as line:
        for hub, where in ((source, ""), (line, LINE)):
            played.measure(f"direct{where}", site, partial(site.download, hub))
            with site.ours(hub) as url:
                played.measure(f"ours, cold{where}", site, partial(site.download, url))
                played.measure(f"ours, warm{where}", site, partial(site.download, url))
            played.measure(f"four direct{where}", site, partial(site.at_once, hub))
            with site.ours(hub) as url:
                played.measure(f"ours, four cold{where}", site, partial(site.at_once, url))
                played.measure(f"ours, four warm{where}", site, partial(site.at_once, url))
        if site.olah:
            with site.olah_mirror(source) as url:
                played.measure("olah, cold", site, partial(site.download, url))
                played.measure("olah, warm", site, partial(site.download, url))
    return played


def without_source(site: Site) -> dict[str, bool]:
    """Whether a mirror that has the model gives it to a new client when the source is gone."""
    found = {}
    mirrors = {"ours": site.ours} | ({"olah": site.olah_mirror} if site.olah else {})
    for name, mirror in mirrors.items():
        with contextlib.ExitStack() as stack:
            with site.source() as source:
                url = stack.enter_context(mirror(source))
                site.download(url)
            try:
                site.download(url)
            except RuntimeError:
                found[name] = False
            else:
                found[name] = True
    return found


def main() -> None:
    """Measure, print a table, and the figures as the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench.registry_load", description=__doc__)
    parser.add_argument("--size", type=float, default=0.3, help="of the model, in GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--olah", help="the program olah-cli, to be measured too")
    options = parser.parse_args()
    end_when_told()
    size = int(options.size * 1e9) // FILES
    with tempfile.TemporaryDirectory(prefix="registry-load-") as home:
        site = Site(Path(home), options.olah)
        repo = site.fresh()
        for number in range(FILES):
            (repo / f"model-{number}.safetensors").write_bytes(random.Random(number).randbytes(size))
        library = Library(FileStore(site.folder / "source"), Catalogue([]))
        import_folder(library, repo, name="m", repo=REPO, revision="main")
        rounds = [play(site) for _ in range(options.rounds)]
        served = without_source(site)
    times = {name: [each.seconds[name] for each in rounds] for name in rounds[0].seconds}
    cores = {name: statistics.median(each.cores[name] for each in rounds) for name in times}
    print(table(("", "s least", "s most", "cores busy"), [(n, min(t), max(t), cores[n]) for n, t in times.items()]))
    for where, of in (("on loopback", ""), ("with the source behind 1 Gbit/s", LINE)):
        ratios = (
            ("cold vs direct", f"ours, cold{of}", f"direct{of}"),
            ("four direct vs one", f"four direct{of}", f"direct{of}"),
            ("four warm vs one", f"ours, four warm{of}", f"ours, warm{of}"),
            ("four cold vs one", f"ours, four cold{of}", f"ours, cold{of}"),
            ("four cold vs four direct", f"ours, four cold{of}", f"four direct{of}"),
        )
        print(table((where, "ratio"), [(name, median_ratio(times[a], times[b])) for name, a, b in ratios]))
    figures: Figures = {
        "warm_vs_direct": median_ratio(times["ours, warm"], times["direct"]),
        "cold_vs_direct": median_ratio(times["ours, cold"], times["direct"]),
        "four_cold_vs_one": median_ratio(times["ours, four cold"], times["ours, cold"]),
        "source_reads_four_vs_one": max(
            each.source_reads["ours, four cold"] / each.source_reads["ours, cold"] for each in rounds
        ),
        "served_without_source": int(served["ours"]),
        "olah_warm_vs_direct": median_ratio(times["olah, warm"], times["direct"]) if options.olah else None,
        "olah_cold_vs_direct": median_ratio(times["olah, cold"], times["direct"]) if options.olah else None,
        "olah_served_without_source": int(served["olah"]) if options.olah else None,
    }
    print(last_line("registry_load", figures))


if __name__ == "__main__":
    main()
