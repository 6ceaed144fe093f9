"""Model files: fetched, verified, resumed, shared; against a real registry with injected faults."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from kit.config.catalogue import Catalogue, Entry
from kit.hub.listing import RemoteFile
from kit.model_files.fetch import FetchTuning, ModelFilesError, fetch_model
from kit.model_files.registry_source import RegistryClient
from kit.net.retry import RetryPolicy
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.store.file_store import FileStore
from tests.support.hub import Switches, contents, serving, serving_registry, set_when, small_repo, wait_until
from tests.support.weights import safetensors

REPO = "test/small"
WEIGHTS = "model.safetensors"


@dataclass
class Registry:
    """A registry with one small model, and the folder that the model was made from."""

    url: str
    switches: Switches
    folder: Path
    library: Library
    manifest: Manifest


@dataclass
class Fetch:
    """Calls fetch_model for the small model and records its reports."""

    url: str
    cache: Path
    token: str | None = None
    fields: dict[str, object] = field(default_factory=dict)
    reports: list[tuple[float, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    tuning: FetchTuning = field(default_factory=FetchTuning)

    def __call__(self) -> Path:
        entry = Entry.model_validate({"name": "small", "kind": "llm", "hf_repo": REPO, **self.fields})
        return fetch_model(
            entry, registry_url=self.url, token=self.token, cache=self.cache, report=self._report, stop=self.stop,
            tuning=self.tuning,
        )  # fmt: skip

    def _report(self, share: float, text: str) -> None:
        self.reports.append((share, text))

    @property
    def texts(self) -> str:
        return "\n".join(text for _, text in self.reports)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry in this process."""
    folder, switches = small_repo(tmp_path / "repo"), Switches()
    library = Library(FileStore(tmp_path / "store"), Catalogue([]))
    manifest = import_folder(library, folder, name="small", repo=REPO, revision="main")
    with serving_registry(tmp_path / "store", switches=switches) as url:
        yield Registry(url, switches, folder, library, manifest)


@pytest.fixture
def fetch(registry: Registry, tmp_path: Path) -> Fetch:
    """A fetch into an empty cache."""
    return Fetch(registry.url, tmp_path / "cache")


def failure(fetch: Fetch) -> ModelFilesError:
    with pytest.raises(ModelFilesError) as caught:
        fetch()
    return caught.value


def home(fetch: Fetch) -> Path:
    return fetch.cache / "test--small"


def test_folder_holds_exactly_the_models_files(registry: Registry, fetch: Fetch) -> None:
    """Every byte, nothing else, in a folder named by the commit; progress runs from 0 to 1."""
    folder = fetch()
    assert folder == home(fetch) / registry.manifest.commit
    assert contents(folder) == contents(registry.folder)
    shares = [share for share, _ in fetch.reports]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert "fetching model.safetensors 100 % of 3.0 MB" in fetch.texts


def test_second_start_fetches_and_reads_nothing(
    registry: Registry, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time are unchanged since the verification: no byte is requested, no byte is hashed."""
    folder = fetch()
    registry.switches.seen.clear()
    monkeypatch.setattr("hashlib.sha256", None)
    assert fetch() == folder
    assert [path for _, path, _ in registry.switches.seen] == [f"/api/models/{REPO}/revision/main"]


def test_touched_file_is_verified_again_but_not_fetched(registry: Registry, fetch: Fetch) -> None:
    """Its content is the same, only its time changed."""
    folder = fetch()
    (folder / WEIGHTS).touch()
    registry.switches.seen.clear()
    fetch()
    assert registry.switches.requests(f"/{WEIGHTS}") == []


@pytest.mark.parametrize("damage", ["changed", "short", "gone", "no-record"])
def test_damaged_cache_is_repaired(registry: Registry, fetch: Fetch, damage: str) -> None:
    """Only the damaged file is fetched again."""
    folder = fetch()
    weights = folder / WEIGHTS
    if damage == "changed":
        weights.write_bytes(b"?" + weights.read_bytes()[1:])
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "gone":
        weights.unlink()
    else:
        folder.with_name(folder.name + ".json").write_text("{")
    registry.switches.seen.clear()
    assert contents(fetch()) == contents(registry.folder)
    assert len(registry.switches.requests(f"/{WEIGHTS}")) == (0 if damage == "no-record" else 1)
    assert registry.switches.requests("/tokenizer.json") == []
    assert [path.name for path in home(fetch).iterdir() if "part" in path.name] == []


def test_partial_file_is_resumed(registry: Registry, fetch: Fetch) -> None:
    """Stopped after the first part: the next fetch requests the rest of that file, and no finished file."""
    fetch.tuning = FetchTuning(part=1_000_000, files=1)
    original = fetch._report
    part = home(fetch) / f"{registry.manifest.commit}.part"
    part.mkdir(parents=True)
    shutil.copy(registry.folder / "tokenizer.json", part)

    def stop_after_a_part(share: float, text: str) -> None:
        original(share, text)
        if text.startswith(f"fetching {WEIGHTS} 33 %"):
            fetch.stop.set()

    fetch._report = stop_after_a_part  # type: ignore[method-assign]  # this test listens in
    error = failure(fetch)
    assert error.is_transient
    assert "Stopped" in str(error)
    assert not (home(fetch) / registry.manifest.commit).exists()
    fetch.stop.clear()
    registry.switches.seen.clear()
    fetch._report = original  # type: ignore[method-assign]  # as before
    assert contents(fetch()) == contents(registry.folder)
    starts = {headers["range"].removeprefix("bytes=").partition("-")[0] for headers in weights_requests(registry)}
    assert starts == {"1000000", "2000000"}
    assert registry.switches.requests("/tokenizer.json") == []


def test_parts_are_fetched_in_parallel_and_written_in_order(registry: Registry, fetch: Fetch) -> None:
    """While the first part is held back the others are requested, and the file is right."""
    fetch.tuning = FetchTuning(part=500_000)
    gate = registry.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    opener = set_when(gate, lambda: len(weights_requests(registry)) == 6)
    opener.start()
    assert contents(fetch()) == contents(registry.folder)
    opener.join()


def test_many_large_files_are_one_stream_each(registry: Registry, fetch: Fetch, tmp_path: Path) -> None:
    """One request per file, whatever the part size; after an interruption only the rest is requested."""
    fetch.tuning = FetchTuning(part=50_000, chunk=10_000)
    folder = small_repo(tmp_path / "many")
    (folder / WEIGHTS).unlink()
    for name in "abcd":
        (folder / f"{name}.safetensors").write_bytes(safetensors(name, 400_000))
    import_folder(registry.library, folder, name="small", repo=REPO, revision="main")
    registry.switches.cut_after["/c.safetensors"] = 120_000
    registry.switches.cuts_left["c.safetensors"] = 1
    gate = registry.switches.gate[".safetensors"] = threading.Event()
    asked = registry.switches.requests
    opener = set_when(gate, lambda: len(asked(".safetensors")) == 4)
    opener.start()
    assert contents(fetch()) == contents(folder)
    opener.join()
    assert [len(asked(f"/{name}.safetensors")) for name in "abd"] == [1, 1, 1]
    assert [headers["range"] for headers in asked("/c.safetensors")] == ["bytes=0-399999", "bytes=120000-399999"]


def test_long_stream_is_requested_in_spans(registry: Registry, fetch: Fetch) -> None:
    """One request per span, and the file is complete."""
    fetch.tuning = FetchTuning(span=1_000_000, parts=1)
    assert contents(fetch()) == contents(registry.folder)
    assert [headers["range"] for headers in weights_requests(registry)] == [
        "bytes=0-999999", "bytes=1000000-1999999", "bytes=2000000-2999999",
    ]  # fmt: skip


def weights_requests(registry: Registry) -> list[dict[str, str]]:
    return registry.switches.requests(f"/{WEIGHTS}")


def test_interrupted_stream_resumes(registry: Registry, fetch: Fetch) -> None:
    """Two interruptions of one file: three requests, each for the missing rest."""
    registry.switches.cut_after[WEIGHTS] = 1_200_000
    registry.switches.cuts_left[WEIGHTS] = 2
    assert contents(fetch()) == contents(registry.folder)
    assert len(registry.switches.requests(f"/{WEIGHTS}")) == 3


def test_damaged_partial_file_is_replaced(registry: Registry, fetch: Fetch) -> None:
    """Wrong bytes from an earlier fetch fail the digest, are removed, and the whole file is fetched."""
    part = home(fetch) / f"{registry.manifest.commit}.part"
    part.mkdir(parents=True)
    (part / WEIGHTS).write_bytes(b"x" * 1000)
    (part / "config.json").write_bytes(b"y" * 5000)
    assert contents(fetch()) == contents(registry.folder)


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_corrupted_file_is_named_and_not_published(registry: Registry, fetch: Fetch, path: str) -> None:
    """The registry's bytes do not match its own digest: a permanent error."""
    registry.switches.corrupt.add(f"/{path}")
    error = failure(fetch)
    assert not error.is_transient
    assert f"{path} of {REPO} arrived damaged" in str(error)
    assert f"POST {registry.url}/models/small/verify" in str(error)
    assert not (home(fetch) / registry.manifest.commit).exists()


def test_small_files_without_sha256_are_verified_by_git_id(registry: Registry, fetch: Fetch) -> None:
    """As listed by huggingface.co, whose listings have no `sha256` of small files."""
    with RegistryClient(registry.url, None, model="small") as client:
        listing = client.listing(REPO, "main", threading.Event())
    config = next(file for file in registry.manifest.files if file.path == "config.json")
    remote = RemoteFile(config.path, config.size, sha256=None, git_sha1=config.git_sha1)
    hasher = remote.hasher()
    hasher.update((registry.folder / "config.json").read_bytes())
    assert remote.matches(hasher)
    assert len(listing.files) == len(registry.manifest.files)


def test_moved_revision_gets_a_new_folder(registry: Registry, fetch: Fetch, tmp_path: Path) -> None:
    """The old folder stays for services that still use it."""
    old = fetch()
    changed = small_repo(tmp_path / "changed", seed="new")
    manifest = import_folder(registry.library, changed, name="small", repo=REPO, revision="main")
    new = fetch()
    assert new.name == manifest.commit != old.name
    assert contents(new) == contents(changed)
    assert contents(old) == contents(registry.folder)


def test_catalogue_patterns_select_files(registry: Registry, fetch: Fetch) -> None:
    """Other files are not fetched."""
    fetch.fields = {"allow_patterns": ["*.json"], "ignore_patterns": ["1_Pooling/"]}
    assert set(contents(fetch())) == {"config.json", "tokenizer.json"}


def test_registry_down_is_transient(tmp_path: Path) -> None:
    """With an empty cache: the error names the address."""
    error = failure(Fetch("http://127.0.0.1:9", tmp_path / "cache"))
    assert error.is_transient
    assert "http://127.0.0.1:9" in str(error)


def test_complete_folder_is_used_without_the_registry(registry: Registry, fetch: Fetch) -> None:
    """If it is intact, a service starts without the registry."""
    folder = fetch()
    fetch.url = "http://127.0.0.1:9"
    assert fetch() == folder
    assert "files from before" in fetch.texts
    (folder / WEIGHTS).write_bytes(b"?" * 3_000_000)
    assert failure(fetch).is_transient


def test_missing_model_is_transient(registry: Registry, fetch: Fetch) -> None:
    """The error says how to mirror it."""
    fetch.fields = {"hf_repo": "test/other"}
    error = failure(fetch)
    assert error.is_transient
    assert "scripts/offline-setup.sh" in str(error)
    assert registry.url in str(error)


@pytest.mark.parametrize(
    ("status", "is_transient"), [(401, False), (403, False), (500, True), (503, True), (429, True)]
)
def test_refusal_is_permanent_and_failure_transient(
    registry: Registry, fetch: Fetch, status: int, is_transient: bool
) -> None:
    """A wrong key stays wrong; a failing registry may recover."""
    registry.switches.status[f"/api/models/{REPO}/revision/main"] = (status, {})
    error = failure(fetch)
    assert error.is_transient is is_transient
    assert registry.url in str(error)


def test_registrys_error_message_is_shown(registry: Registry, fetch: Fetch) -> None:
    """It says what is wrong and what to do; a status code alone does not."""
    fetch.tuning = FetchTuning(retries=RetryPolicy(max_attempts=1))
    (weights,) = (file for file in registry.manifest.files if file.path == WEIGHTS)
    local = registry.library.store.local_path(weights.sha256)
    assert local is not None
    local.unlink()
    assert f"returned 500 for {WEIGHTS}: The blob of {WEIGHTS} is missing in the store." in str(failure(fetch))


def test_token_is_sent(registry: Registry, fetch: Fetch, tmp_path: Path) -> None:
    """REGISTRY_TOKEN opens a registry with API_KEYS."""
    with serving_registry(tmp_path / "store", api_keys="k") as url:
        fetch.url = url
        assert "REGISTRY_TOKEN" in str(failure(fetch))
        fetch.token = "k"
        assert contents(fetch()) == contents(registry.folder)


def test_concurrent_fetches_download_once(registry: Registry, fetch: Fetch) -> None:
    """The second waits, reports that, and finds the files complete."""
    gate = registry.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    second = Fetch(fetch.url, fetch.cache)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda each=each: folders.append(each())) for each in (fetch, second)]
    for thread in threads:
        thread.start()
        wait_until(lambda: registry.switches.requests(f"/{WEIGHTS}"))
    waiting = wait_until(lambda: next((each for each in (fetch, second) if "waiting for another" in each.texts), None))
    assert waiting is second
    gate.set()
    for thread in threads:
        thread.join()
    assert folders == [home(fetch) / registry.manifest.commit] * 2
    assert len(registry.switches.requests(f"/{WEIGHTS}")) == 1


def test_stop_ends_the_wait_for_another_fetch(registry: Registry, fetch: Fetch) -> None:
    """The other fetch continues."""
    gate = registry.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    first = threading.Thread(target=fetch)
    first.start()
    wait_until(lambda: registry.switches.requests(f"/{WEIGHTS}"))
    second = Fetch(fetch.url, fetch.cache)
    set_when(second.stop, lambda: "waiting" in second.texts).start()
    assert "Stopped" in str(failure(second))
    gate.set()
    first.join()


def test_full_disk_is_reported_before_fetching(
    registry: Registry, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how much is missing and free, and what to do."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    error = failure(fetch)
    assert not error.is_transient
    assert "needs 3.0 MB more, 1.0 MB are free" in str(error)
    assert registry.switches.requests(f"/{WEIGHTS}") == []


def test_unusable_cache_is_reported(registry: Registry, tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "cache").write_text("not a folder")
    error = failure(Fetch(registry.url, tmp_path / "cache"))
    assert not error.is_transient
    assert "MODEL_CACHE" in str(error)


@pytest.mark.parametrize("path", ["../../escaped", "/etc/x", "a/../../x", "a\\..\\x"])
def test_malicious_listing_writes_nothing(fetch: Fetch, path: str) -> None:
    """A listing with a path outside the folder is rejected before anything is written."""
    listing = {"sha": "a" * 40, "siblings": [{"rfilename": path, "size": 1, "blobId": "b" * 40}]}
    with serving(Starlette(routes=[Route("/{path:path}", lambda _: JSONResponse(listing))])) as url:
        fetch.url = url
        error = failure(fetch)
    assert not error.is_transient
    assert repr(path) in str(error)
    assert list(home(fetch).iterdir()) == []
