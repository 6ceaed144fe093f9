"""`registry mirror` against real registries, one of which serves as the Hub."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kit.config.catalogue import Catalogue, Entry
from registry.commands.bulk_mirror import mirror_models
from registry.commands.cli import main
from registry.commands.registry_client import RegistryClient
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from tests.support import plain_http
from tests.support.hub import Switches, random_bytes, serving, serving_registry, small_repo, wait_for_job, wait_until
from tests.support.programs.registry_process import ROOT, RegistryProcess

NAMES = ("one", "two", "three")
END_S = 60.0


@dataclass
class Source:
    """A registry that serves as the Hub with three models, and a catalogue of them; the third is optional."""

    url: str
    switches: Switches
    catalogue: Path


@dataclass
class Done:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    """The upstream Hub."""
    library = Library(FileStore(tmp_path / "hub"), Catalogue([]))
    lines = []
    for name in NAMES:
        folder = small_repo(tmp_path / name, seed=name, weights=1_000_000)
        (folder / f"{name}.dat").write_bytes(random_bytes(name + "!", 1_500_000))
        import_folder(library, folder, name=name, repo=f"test/{name}", revision="main")
        lines.append(f"{name}: {{kind: llm, hf_repo: test/{name}, optional: {str(name == 'three').lower()}}}\n")
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text("".join(lines))
    switches = Switches()
    with serving_registry(tmp_path / "hub", switches=switches) as url:
        yield Source(url, switches, catalogue)


@pytest.fixture
def mirror(source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `registry mirror ...` in this process against a URL."""

    def run(url: str, *arguments: str, command: str = "mirror") -> Done:
        monkeypatch.setenv("CATALOGUE", str(source.catalogue))
        code = 0
        try:
            main([command, *arguments, *(["--url", url] if command == "mirror" else [])])
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture
def registry(source: Source, tmp_path: Path) -> Iterator[tuple[str, Switches]]:
    """The mirroring registry's URL, and the requests that it got."""
    switches = Switches()
    with serving_registry(
        tmp_path / "mirror", switches=switches, hf_endpoint=source.url, catalogue=source.catalogue
    ) as url:
        yield url, switches


def posts(switches: Switches, ending: str) -> int:
    return sum(method == "POST" and path.endswith(ending) for method, path, _ in switches.seen)


def test_mirrors_and_verifies_every_model(mirror: Any, registry: tuple[str, Switches]) -> None:
    """Optional ones too; the summary has name, repository, commit, size and status of each."""
    url, switches = registry
    done = mirror(url)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        model = plain_http.get(f"{url}/models/{name}").json()
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"{name} "))
        assert row.split() == [
            *(name, f"test/{name}", model["commit"][:12], "2.5", "MB", "ready,", "every", "digest", "verified"),
        ]
        assert f"{name}: downloading" in done.stderr or f"{name}: queued" in done.stderr
    assert posts(switches, "/verify") == 3


def test_second_run_sends_no_request_to_the_hub(mirror: Any, registry: tuple[str, Switches], source: Source) -> None:
    """Stored models are only verified, and with --no-verify not even that."""
    url, switches = registry
    assert mirror(url, "one").returncode == 0
    requests, downloads = len(source.switches.seen), posts(switches, "/download")
    again = mirror(url, "one")
    assert (again.returncode, posts(switches, "/verify")) == (0, 2)
    quick = mirror(url, "one", "--no-verify")
    assert (quick.returncode, posts(switches, "/verify")) == (0, 2)
    assert "digest" not in quick.stdout
    assert (len(source.switches.seen), posts(switches, "/download")) == (requests, downloads)


def test_failed_model_does_not_stop_the_others(mirror: Any, registry: tuple[str, Switches], source: Source) -> None:
    """A gated model: exit 1, the licence page in the summary, the others ready."""
    source.switches.status["two/revision/main"] = (403, {"X-Error-Code": "GatedRepo"})
    done = mirror(registry[0])
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    failed = next(number for number, line in enumerate(lines) if line.startswith("two "))
    assert lines[failed].endswith("FAILED")
    assert f"accept its licence at {source.url}/test/two and set HF_TOKEN" in lines[failed + 1]
    assert done.stdout.count("every digest verified") == 2


def test_unreachable_hub_is_named(mirror: Any, source: Source, tmp_path: Path) -> None:
    with serving_registry(tmp_path / "m", hf_endpoint="http://127.0.0.1:9", catalogue=source.catalogue) as url:
        done = mirror(url, "one")
    assert done.returncode == 1
    assert "http://127.0.0.1:9 cannot be reached" in done.stdout


def test_unknown_names_are_rejected_first(mirror: Any, registry: tuple[str, Switches]) -> None:
    """Exit 2 and the known names; no request is sent."""
    done = mirror(registry[0], "one", "qwem")
    assert done.returncode == 2
    assert "No such model: qwem. Models of the catalogue: one, two, three." in done.stderr
    assert registry[1].seen == []


def test_unreachable_registry_exits_with_69(mirror: Any) -> None:
    done = mirror("http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (69, "")
    assert "No registry at http://127.0.0.1:9" in done.stderr


def test_jobs_option_limits_parallel_downloads(mirror: Any, registry: tuple[str, Switches], source: Source) -> None:
    """With --jobs 1 the second model starts after the first has ended."""
    gate = source.switches.gate["/one.dat"] = threading.Event()

    def open_gate() -> None:
        wait_until(lambda: source.switches.requests("/one.dat"))
        others.append(len(source.switches.requests("test/two/revision/main")))
        gate.set()

    others: list[int] = []
    watching = threading.Thread(target=open_gate)
    watching.start()
    done = mirror(registry[0], "one", "two", "--jobs", "1")
    watching.join()
    assert (done.returncode, others) == (0, [0])


def test_damaged_file_is_repaired(mirror: Any, registry: tuple[str, Switches], source: Source, tmp_path: Path) -> None:
    """One flipped bit in the store: only that file is downloaded again, then verified."""
    url, _ = registry
    assert mirror(url, "one").returncode == 0
    files = plain_http.get(f"{url}/models/one").json()["files"]
    digest = next(file["sha256"] for file in files if file["path"] == "one.dat")
    blob = tmp_path / "mirror" / "blobs" / "sha256" / digest
    blob.chmod(0o600)
    damaged = bytearray(blob.read_bytes())
    damaged[1000] ^= 1
    blob.write_bytes(damaged)
    done = mirror(url, "one")
    assert done.returncode == 0, done.stdout
    assert "every digest verified" in done.stdout
    assert len(source.switches.requests("/one.dat")) == 2
    assert blob.read_bytes() == random_bytes("one!", 1_500_000)


def test_unrepairable_damage_is_reported(mirror: Any, source: Source, tmp_path: Path) -> None:
    """Without internet: the damaged file, and why it could not be downloaded."""
    store = tmp_path / "hub"
    blob = max((store / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.chmod(0o600)
    blob.write_bytes(b"x" * blob.stat().st_size)
    with serving_registry(store, hf_endpoint="http://127.0.0.1:9", catalogue=source.catalogue) as url:
        done = mirror(url)
    assert done.returncode == 1
    assert "Damaged or missing in the store: " in done.stdout
    assert "http://127.0.0.1:9 cannot be reached" in done.stdout


def start(process: RegistryProcess, *arguments: str) -> "subprocess.Popen[str]":
    """Start `registry mirror` as a process beside the registry, as `docker compose exec` does."""
    return subprocess.Popen(
        [sys.executable, "-m", "registry", "mirror", *arguments],
        cwd=ROOT,
        env=process.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_interrupted_mirror_is_joined_by_the_next(source: Source, tmp_path: Path) -> None:
    """Ctrl-C: exit 130 at once with a hint; the registry continues, and the same command joins the download."""
    gate = source.switches.gate["/one.dat"] = threading.Event()
    with RegistryProcess(tmp_path / "m", hf_endpoint=source.url, catalogue=source.catalogue) as process:
        first = start(process)
        wait_until(lambda: source.switches.requests("/one.dat"))
        first.send_signal(signal.SIGINT)
        _, stderr = first.communicate(timeout=END_S)
        assert first.returncode == 130
        assert stderr.endswith("Interrupted. Run the same command again to resume.\n")
        assert "Traceback" not in stderr
        second = start(process)
        gate.set()
        table, stderr = second.communicate(timeout=END_S)
        assert second.returncode == 0, stderr
        assert table.count("every digest verified") == 3
    assert len(source.switches.requests("/one.dat")) == 1


@pytest.mark.parametrize("rounds", [1, 2])
def test_killed_registry_is_waited_for(source: Source, tmp_path: Path, rounds: int) -> None:
    """kill -9 during the download: the command waits, prints so, and completes."""
    gate = source.switches.gate["/two.dat"] = threading.Event()
    with RegistryProcess(tmp_path / "m", hf_endpoint=source.url, catalogue=source.catalogue) as process:
        running = start(process)
        for done in range(rounds):
            wait_until(lambda done=done: len(source.switches.requests("/two.dat")) > done)
            process.kill()
            process.start()
        gate.set()
        table, stderr = running.communicate(timeout=END_S)
        assert running.returncode == 0, stderr
        assert table.count("every digest verified") == 3
        assert "waiting: " in stderr


def test_registry_that_stays_unreachable(
    source: Source, mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed and not restarted: exit 69 after RETRY_FOR_S, with one line."""
    monkeypatch.setattr("registry.commands.mirror_command.RETRY_FOR_S", 0.5)
    source.switches.gate["/two.dat"] = threading.Event()
    with RegistryProcess(tmp_path / "m", hf_endpoint=source.url, catalogue=source.catalogue) as process:

        def kill() -> None:
            wait_until(lambda: source.switches.requests("/two.dat"))
            process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        done = mirror(process.url, "one", "two")
        killer.join()
    source.switches.gate["/two.dat"].set()
    assert (done.returncode, done.stdout.count("verified")) == (69, 0)
    assert f"No registry at {process.url}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_api_key_is_sent(source: Source, mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command and the registry have the same API_KEYS; the command sends one of them."""
    monkeypatch.setenv("API_KEYS", "k1,k2")
    with serving_registry(tmp_path / "m", hf_endpoint=source.url, catalogue=source.catalogue, api_keys="k1,k2") as url:
        assert mirror(url, "one").returncode == 0


def test_sizes_lists_missing_bytes(
    mirror: Any, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes and missing bytes of each model; a `?` and the reason where the Hub rejects the query."""
    monkeypatch.setenv("STORE", f"file:{tmp_path / 'm'}")
    monkeypatch.setenv("HF_ENDPOINT", source.url)
    source.switches.status["three/revision/main"] = (403, {"X-Error-Code": "GatedRepo"})
    with serving_registry(tmp_path / "m", hf_endpoint=source.url, catalogue=source.catalogue) as url:
        plain_http.post(f"{url}/models/one/download")
        size = wait_for_job(url, "one")["size_bytes"]
    rows = [line.split("\t") for line in mirror("", command="sizes").stdout.splitlines() if "\t" in line]
    assert rows[0] == ["one", str(size), "0"]
    assert rows[1][0] == "two"
    assert 2_500_000 < int(rows[1][2]) < int(rows[1][1])  # some small files are those of the first model
    assert rows[2][:3] == ["three", "?", "?"]
    assert "is gated" in rows[2][3]


class LosesVerification:
    """A registry that restarted during the first verification: status `ready` without `verified_at`."""

    def __init__(self) -> None:
        self.verifications = 0

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/models/one", self._show),
                Route("/models/one/verify", self._verify, methods=["POST"]),
                Route("/models/one/events", self._events),
            ]
        )

    def _model(self, status: str) -> dict[str, Any]:
        progress = dict.fromkeys(("bytes_done", "bytes_total", "files_done", "files_total", "bytes_per_second"), 1)
        model = {"name": "one", "hf_repo": "test/one", "revision": "main", "commit": "c" * 40, "status": status}
        proof = {"verified_at": "2026-11-01T00:00:00Z"} if self.verifications > 1 and status == "ready" else {}
        return model | {"progress": progress | {"eta_seconds": 0}, "size_bytes": 1} | proof

    async def _show(self, _: Request) -> Response:
        return JSONResponse(self._model("ready"))

    async def _verify(self, _: Request) -> Response:
        self.verifications += 1
        return JSONResponse(self._model("verifying"))

    async def _events(self, _: Request) -> Response:
        return PlainTextResponse(f"event: ready\ndata: {json.dumps(self._model('ready'))}\n\n")


def test_lost_verification_is_repeated() -> None:
    """`ready` without `verified_at` is not a passed verification."""
    fake = LosesVerification()

    async def run(url: str) -> bool:
        entry = Entry(name="one", kind="llm", hf_repo="test/one")
        async with RegistryClient(url, None) as client:
            return (await mirror_models(client, [entry], lambda _: None, max_parallel=None, verify=True))[0].verified

    with serving(fake.app()) as url:
        assert asyncio.run(run(url))
    assert fake.verifications == 2


def test_terminal_shows_a_line_per_model(source: Source, tmp_path: Path) -> None:
    """On a pseudo-terminal the lines are redrawn in place; the last state stays."""
    import pty

    with RegistryProcess(tmp_path / "m", hf_endpoint=source.url, catalogue=source.catalogue) as process:
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(ROOT)
            os.execve(sys.executable, [sys.executable, "-m", "registry", "mirror"], process.environment)
        shown = b""
        while True:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # EIO: the other side of the pseudo-terminal is closed
                break
            if not piece:
                break
            shown += piece
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = shown.decode()
    redraw = "\x1b[1A\x1b[2K" * 2  # from the third line up to the first
    assert redraw in text
    last = text.rpartition(redraw)[2]
    for name in NAMES:
        assert f"{name:5}  ready, verified, 2.5 MB" in last
