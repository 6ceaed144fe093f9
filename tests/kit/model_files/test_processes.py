"""Model files shared by processes: races, SIGKILL, full disk."""

import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.store.file_store import FileStore
from tests.support.hub import Switches, contents, serving_registry, small_repo, wait_until

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = "model.safetensors"

PROGRAM = """
import sys, threading
from pathlib import Path
from kit.config.catalogue import Entry
from kit.model_files.fetch import ModelFilesError, fetch_model

entry = Entry.model_validate({"name": "small", "kind": "llm", "hf_repo": "test/small"})
try:
    print(fetch_model(entry, registry_url=sys.argv[1], token=None, cache=Path(sys.argv[2]),
                      report=lambda share, text: print(text, flush=True), stop=threading.Event()))
except ModelFilesError as error:
    print("failed", error.is_transient, error)
"""


class Running:
    """A registry with one small model, its switches, and processes that fetch from it."""

    def __init__(self, url: str, switches: Switches, manifest: Manifest, folder: Path, cache: Path) -> None:
        self.switches = switches
        self.manifest = manifest
        self.folder = folder
        self.cache = cache
        self._url = url
        self._processes: list[subprocess.Popen[str]] = []

    def fetch(self, limit: Callable[[], None] | None = None) -> "subprocess.Popen[str]":
        """Start a process that fetches the model."""
        command = [sys.executable, "-c", PROGRAM, self._url, str(self.cache)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=limit)
        self._processes.append(process)
        return process

    def end(self) -> None:
        """Kill all processes."""
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Everything for these tests."""
    folder, switches = small_repo(tmp_path / "repo"), Switches()
    library = Library(FileStore(tmp_path / "store"), Catalogue([]))
    manifest = import_folder(library, folder, name="small", repo="test/small", revision="main")
    with serving_registry(tmp_path / "store", switches=switches) as url:
        everything = Running(url, switches, manifest, folder, tmp_path / "cache")
        yield everything
        everything.end()


def last_line(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=60)
    return output.strip().splitlines()[-1]


def test_racing_processes_fetch_once(running: Running) -> None:
    """Three services of one model start at once: one fetch, the same complete folder for each."""
    processes = [running.fetch() for _ in range(3)]
    folders = {last_line(process) for process in processes}
    assert folders == {str(running.cache / "test--small" / running.manifest.commit)}
    assert contents(Path(folders.pop())) == contents(running.folder)
    assert len(running.switches.requests(f"/{WEIGHTS}")) == 1


def test_killed_fetch_is_resumed_by_the_waiting_process(running: Running) -> None:
    """SIGKILL in the middle of a file: the waiting process continues, without fetching finished files again."""
    gate = running.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    killed = running.fetch()
    wait_until(lambda: running.switches.requests(f"/{WEIGHTS}"))
    successor = running.fetch()
    assert successor.stdout is not None
    while "waiting for another process" not in successor.stdout.readline():
        assert successor.poll() is None
    killed.kill()
    killed.wait()
    gate.set()
    assert contents(Path(last_line(successor))) == contents(running.folder)
    assert len(running.switches.requests("/config.json")) == 2  # the model's own, and 1_Pooling's


def test_disk_that_fills_up_during_the_fetch(running: Running) -> None:
    """A clear error and no folder; with free space the next fetch resumes."""
    full = running.fetch(limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)))
    line = last_line(full)
    assert line.startswith("failed False The disk of")
    assert "MODEL_CACHE" in line
    assert not (running.cache / "test--small" / running.manifest.commit).exists()
    assert contents(Path(last_line(running.fetch()))) == contents(running.folder)
    assert running.switches.requests(f"/{WEIGHTS}")[-1]["range"].startswith("bytes=")
