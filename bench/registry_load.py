"""`python -m bench.registry_load`: `snapshot_download` through the registry as a mirror, and through olah.

Cold: the mirror is empty and downloads on demand (MIRROR_MISSING). Warm: once more, by another client. Four at once,
cold: reads of the source are counted. And with the source gone. The reference is the same download from the source
itself, in the same round.

Source, registry and clients share this machine's cores, and loopback is faster than they are: a cold download, which
moves every byte twice, is bound by the CPU here. So the table also has the number of busy cores, four clients of a warm
mirror, and everything again over a link of 1 Gbit/s (`bench.sources.slow_line`). The figures are those of loopback.

`--olah` is olah-cli in its own environment, as it needs other versions of our packages:
`python -m venv DIR && DIR/bin/pip install olah`.
"""

import argparse
import contextlib
import itertools
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

from bench.harness.programs import Program, exit_on_sigterm, free_port
from bench.harness.report import Figures, last_line, median_ratio, table
from bench.registry import FILES, REPO, ROOT, SNAPSHOT, timed
from bench.sources.slow_line import BandwidthLimitedProxy
from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from tests.support.weights import safetensors

CLIENTS = 4
LINE_BYTES_PER_SECOND = 1e9 / 8
LINE = ", 1 Gbit/s"


class Site:
    """The source, and a folder for temporary files."""

    def __init__(self, folder: Path, olah: str | None) -> None:
        self.folder = folder
        self.olah = olah
        self.log = folder / "source.log"
        self._numbers = itertools.count()

    def fresh(self) -> Path:
        """Return a new folder."""
        folder = self.folder / f"new-{next(self._numbers)}"
        folder.mkdir()
        return folder

    def reads(self) -> int:
        """Number of file responses that the source has sent so far."""
        return sum("/resolve/" in line and "GET" in line for line in self.log.read_text().splitlines())

    @contextlib.contextmanager
    def source(self) -> Iterator[str]:
        """Run the registry that acts as the Hub."""
        with self._registry({"STORE": f"file:{self.folder / 'source'}"}, self.log) as url:
            yield url

    @contextlib.contextmanager
    def over_slow_line(self, source: str) -> Iterator[str]:
        """The source, reached over a link of limited bandwidth."""
        with BandwidthLimitedProxy(int(source.rpartition(":")[2]), LINE_BYTES_PER_SECOND) as line:
            yield line.url

    @contextlib.contextmanager
    def ours(self, source: str) -> Iterator[str]:
        """Run an empty registry."""
        home = self.fresh()
        (home / "models.yaml").write_text(f"m: {{kind: llm, hf_repo: {REPO}}}\n")
        env = {"STORE": f"file:{home / 'store'}", "HF_ENDPOINT": source, "MIRROR_MISSING": "yes"}
        with self._registry(env | {"CATALOGUE": str(home / "models.yaml")}, home / "log") as url:
            yield url

    @contextlib.contextmanager
    def olah_mirror(self, source: str) -> Iterator[str]:
        """Run an empty olah."""
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
        """Return the seconds of one client's download. Raises RuntimeError if it fails."""
        with tempfile.TemporaryDirectory(dir=self.folder) as home:
            env = {"HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            try:
                return timed(SNAPSHOT, REPO, f"{home}/model", env=env | {"HF_HUB_DISABLE_TELEMETRY": "1"})
            except subprocess.CalledProcessError as error:
                raise RuntimeError(error.stderr.decode()[-1000:]) from error

    def at_once(self, endpoint: str) -> float:
        """Return the seconds until the last of four clients is done."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            return max(pool.map(self.download, [endpoint] * CLIENTS))


@dataclass
class Round:
    """Measurements of one round."""

    seconds: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)
    """How many cores were busy meanwhile, with whatever."""
    source_reads: dict[str, int] = field(default_factory=dict)

    def measure(self, name: str, site: Site, download: Callable[[], float]) -> None:
        """Run a download and record its cost."""
        reads, before, began = site.reads(), _busy_seconds(), time.monotonic()
        self.seconds[name] = download()
        # Includes the start of the client's program, which its own seconds do not.
        self.cores[name] = (_busy_seconds() - before) / (time.monotonic() - began)
        self.source_reads[name] = site.reads() - reads


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def play(site: Site) -> Round:
    """Run one round."""
    played = Round()
    with site.source() as source, site.over_slow_line(source) as line:
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
    """Whether a mirror that has the model serves it to a new client without its source."""
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
    parser.add_argument("--size", type=float, default=0.3, help="size of the model in GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--olah", help="path of olah-cli, to measure it too")
    options = parser.parse_args()
    exit_on_sigterm()
    size = int(options.size * 1e9) // FILES
    with tempfile.TemporaryDirectory(prefix="registry-load-") as home:
        site = Site(Path(home), options.olah)
        repo = site.fresh()
        for number in range(FILES):
            (repo / f"model-{number}.safetensors").write_bytes(safetensors(str(number), size))
        library = Library(FileStore(site.folder / "source"), Catalogue([]))
        import_folder(library, repo, name="m", repo=REPO, revision="main")
        rounds = [play(site) for _ in range(options.rounds)]
        served = without_source(site)
    times = {name: [each.seconds[name] for each in rounds] for name in rounds[0].seconds}
    cores = {name: statistics.median(each.cores[name] for each in rounds) for name in times}
    print(table(("", "min s", "max s", "cores busy"), [(n, min(t), max(t), cores[n]) for n, t in times.items()]))
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
