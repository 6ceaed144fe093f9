"""Model files: fetched, verified, resumed, shared; against a real registry that can be made to misbehave."""

import random
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
from kit.model_files.fetch import ModelFilesError, fetch_model
from kit.model_files.registry_source import RegistrySource, RemoteFile
from kit.net.retry import RetryPolicy
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.store.file_store import FileStore
from tests.support.hub import Switches, contents, serving, serving_registry, set_when, small_repo, wait_until

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
    """Calls fetch_model for the small model and keeps what it reported."""

    url: str
    cache: Path
    token: str | None = None
    fields: dict[str, object] = field(default_factory=dict)
    reports: list[tuple[float, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> Path:
        entry = Entry.model_validate({"name": "small", "kind": "llm", "hf_repo": REPO, **self.fields})
        return fetch_model(
            entry, registry_url=self.url, token=self.token, cache=self.cache, report=self._report, stop=self.stop
        )

    def _report(self, share: float, text: str) -> None:
        self.reports.append((share, text))

    @property
    def told(self) -> str:
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


def test_the_folder_holds_exactly_the_models_files(registry: Registry, fetch: Fetch) -> None:
    """Every byte, nothing else, in a folder named by the commit; progress runs from 0 to 1."""
    folder = fetch()
    assert folder == home(fetch) / registry.manifest.commit
    assert contents(folder) == contents(registry.folder)
    shares = [share for share, _ in fetch.reports]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert "fetching model.safetensors 100 % of 3.0 MB" in fetch.told


def test_a_second_start_fetches_and_reads_nothing(
    registry: Registry, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time are those of the verification: no byte is asked for, no byte is hashed."""
    folder = fetch()
    registry.switches.seen.clear()
    monkeypatch.setattr("hashlib.sha256", None)
    assert fetch() == folder
    assert [path for _, path, _ in registry.switches.seen] == [f"/api/models/{REPO}/revision/main"]


def test_a_touched_file_is_read_again_but_not_fetched(registry: Registry, fetch: Fetch) -> None:
    """Another time, the same content: verified anew."""
    folder = fetch()
    (folder / WEIGHTS).touch()
    registry.switches.seen.clear()
    fetch()
    assert registry.switches.requests(f"/{WEIGHTS}") == []


@pytest.mark.parametrize("damage", ["changed", "short", "gone", "no-record"])
def test_a_damaged_cache_is_repaired(registry: Registry, fetch: Fetch, damage: str) -> None:
    """Only the damaged file comes again."""
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


def test_what_is_half_there_is_resumed(registry: Registry, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the first part: the next fetch asks for the rest of that file, and for no finished one."""
    monkeypatch.setattr("kit.model_files.file_download.PART", 1_000_000)
    monkeypatch.setattr("kit.model_files.fetch.FILES", 1)
    original = fetch._report

    def stop_after_a_part(share: float, text: str) -> None:
        original(share, text)
        if text.startswith(f"fetching {WEIGHTS} 33 %"):
            fetch.stop.set()

    fetch._report = stop_after_a_part  # type: ignore[method-assign]  # this test listens in
    error = failure(fetch)
    assert error.may_pass
    assert "Stopped" in str(error)
    assert not (home(fetch) / registry.manifest.commit).exists()
    fetch.stop.clear()
    registry.switches.seen.clear()
    fetch._report = original  # type: ignore[method-assign]  # as before
    assert contents(fetch()) == contents(registry.folder)
    starts = {headers["range"].removeprefix("bytes=").partition("-")[0] for headers in weights_requests(registry)}
    assert starts == {"1000000", "2000000"}
    assert registry.switches.requests("/config.json") == []


def test_parts_come_in_parallel_and_lie_in_order(
    registry: Registry, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part held back: the others are asked for meanwhile, and the file is right."""
    monkeypatch.setattr("kit.model_files.file_download.PART", 500_000)
    gate = registry.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    opener = set_when(gate, lambda: len(weights_requests(registry)) == 6)
    opener.start()
    assert contents(fetch()) == contents(registry.folder)
    opener.join()


def test_many_big_files_come_as_a_stream_each(
    registry: Registry, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request per file, whatever the size of parts; what a cut took is asked for from there on, and no more."""
    monkeypatch.setattr("kit.model_files.file_download.PART", 50_000)
    monkeypatch.setattr("kit.model_files.fetch.PART", 50_000)
    monkeypatch.setattr("kit.model_files.file_download.PIECE", 10_000)
    folder = small_repo(tmp_path / "many")
    (folder / WEIGHTS).unlink()
    for name in "abcd":
        (folder / f"{name}.safetensors").write_bytes(random.Random(name).randbytes(400_000))
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


def test_a_long_stream_is_asked_for_span_by_span(
    registry: Registry, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in a span comes with one request, the rest with the next, and what was written is whole."""
    monkeypatch.setattr("kit.model_files.file_download.SPAN", 1_000_000)
    monkeypatch.setattr("kit.model_files.fetch.CONNECTIONS", 1)
    assert contents(fetch()) == contents(registry.folder)
    assert [headers["range"] for headers in weights_requests(registry)] == [
        "bytes=0-999999", "bytes=1000000-1999999", "bytes=2000000-2999999",
    ]  # fmt: skip


def weights_requests(registry: Registry) -> list[dict[str, str]]:
    return registry.switches.requests(f"/{WEIGHTS}")


def test_a_cut_stream_goes_on_by_itself(registry: Registry, fetch: Fetch) -> None:
    """Two cuts in one file: three requests, each for what is missing."""
    registry.switches.cut_after[WEIGHTS] = 1_200_000
    registry.switches.cuts_left[WEIGHTS] = 2
    assert contents(fetch()) == contents(registry.folder)
    assert len(registry.switches.requests(f"/{WEIGHTS}")) == 3


def test_a_wrong_beginning_does_not_stay(registry: Registry, fetch: Fetch) -> None:
    """Half a file of wrong bytes from before is found by the digest, thrown away, and the file fetched whole."""
    part = home(fetch) / f"{registry.manifest.commit}.part"
    part.mkdir(parents=True)
    (part / WEIGHTS).write_bytes(b"x" * 1000)
    (part / "config.json").write_bytes(b"y" * 5000)
    assert contents(fetch()) == contents(registry.folder)


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_a_corrupted_file_is_named_and_no_folder_appears(registry: Registry, fetch: Fetch, path: str) -> None:
    """A registry whose bytes are not what it promises: an error that trying again does not cure."""
    registry.switches.corrupt.add(f"/{path}")
    error = failure(fetch)
    assert not error.may_pass
    assert f"{path} of {REPO} arrived damaged" in str(error)
    assert f"POST {registry.url}/models/small/verify" in str(error)
    assert not (home(fetch) / registry.manifest.commit).exists()


def test_small_files_are_proved_by_gits_id_where_there_is_no_sha256(registry: Registry, fetch: Fetch) -> None:
    """As with the Hub itself: a listing without our `sha256`, a wrong small file is found all the same."""
    with RegistrySource(registry.url, None) as source:
        entry = Entry.model_validate({"name": "small", "kind": "llm", "hf_repo": REPO})
        listing = source.listing(entry)
    config = next(file for file in registry.manifest.files if file.path == "config.json")
    remote = RemoteFile(config.path, config.size, f"git-sha1:{config.git_sha1}")
    hasher = remote.hasher()
    hasher.update((registry.folder / "config.json").read_bytes())
    assert remote.is_proved_by(hasher)
    assert len(listing.files) == len(registry.manifest.files)


def test_a_moved_revision_gets_a_new_folder(registry: Registry, fetch: Fetch, tmp_path: Path) -> None:
    """The old folder stays as it is for whoever uses it."""
    old = fetch()
    changed = small_repo(tmp_path / "changed", seed="new")
    manifest = import_folder(registry.library, changed, name="small", repo=REPO, revision="main")
    new = fetch()
    assert new.name == manifest.commit != old.name
    assert contents(new) == contents(changed)
    assert contents(old) == contents(registry.folder)


def test_patterns_of_the_catalogue_choose_files(registry: Registry, fetch: Fetch) -> None:
    """Only those are fetched."""
    fetch.fields = {"allow_patterns": ["*.json"], "ignore_patterns": ["1_Pooling/"]}
    assert set(contents(fetch())) == {"config.json", "tokenizer.json"}


def test_a_registry_that_is_down_may_come_back(tmp_path: Path) -> None:
    """Nothing in the cache: the error names the address, and waiting can help."""
    error = failure(Fetch("http://127.0.0.1:9", tmp_path / "cache"))
    assert error.may_pass
    assert "http://127.0.0.1:9" in str(error)


def test_without_the_registry_a_complete_folder_is_used(registry: Registry, fetch: Fetch) -> None:
    """Verified before and untouched since: a service starts without the registry."""
    folder = fetch()
    fetch.url = "http://127.0.0.1:9"
    assert fetch() == folder
    assert "files from before" in fetch.told
    (folder / WEIGHTS).write_bytes(b"?" * 3_000_000)
    assert failure(fetch).may_pass


def test_a_model_that_is_not_mirrored_may_come(registry: Registry, fetch: Fetch) -> None:
    """The error says how to get it."""
    fetch.fields = {"hf_repo": "test/other"}
    error = failure(fetch)
    assert error.may_pass
    assert "scripts/offline-setup.sh" in str(error)
    assert registry.url in str(error)


@pytest.mark.parametrize(("status", "may_pass"), [(401, False), (403, False), (500, True), (503, True), (429, True)])
def test_refusals_and_failures_are_told_apart(registry: Registry, fetch: Fetch, status: int, may_pass: bool) -> None:
    """A wrong key stays wrong; a failing registry may recover."""
    registry.switches.status[f"/api/models/{REPO}/revision/main"] = (status, {})
    error = failure(fetch)
    assert error.may_pass is may_pass
    assert registry.url in str(error)


def test_what_the_registry_says_of_a_file_is_told(
    registry: Registry, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message says what is wrong and what to do; a number alone sends people to its log."""
    monkeypatch.setattr("kit.model_files.registry_source.RETRY_POLICY", RetryPolicy(tries=1))
    (weights,) = (file for file in registry.manifest.files if file.path == WEIGHTS)
    local = registry.library.store.local_path(weights.sha256)
    assert local is not None
    local.unlink()
    assert f"answered 500 for {WEIGHTS}: The bytes of {WEIGHTS} are gone from the store." in str(failure(fetch))


def test_a_key_is_sent(registry: Registry, fetch: Fetch, tmp_path: Path) -> None:
    """REGISTRY_TOKEN opens a registry with API_KEYS."""
    with serving_registry(tmp_path / "store", api_keys="k") as url:
        fetch.url = url
        assert "REGISTRY_TOKEN" in str(failure(fetch))
        fetch.token = "k"
        assert contents(fetch()) == contents(registry.folder)


def test_two_at_once_fetch_once(registry: Registry, fetch: Fetch) -> None:
    """The second waits, says so, and finds the files there."""
    gate = registry.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    second = Fetch(fetch.url, fetch.cache)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda each=each: folders.append(each())) for each in (fetch, second)]
    for thread in threads:
        thread.start()
        wait_until(lambda: registry.switches.requests(f"/{WEIGHTS}"))
    waiting = wait_until(lambda: next((each for each in (fetch, second) if "waiting for another" in each.told), None))
    assert waiting is second
    gate.set()
    for thread in threads:
        thread.join()
    assert folders == [home(fetch) / registry.manifest.commit] * 2
    assert len(registry.switches.requests(f"/{WEIGHTS}")) == 1


def test_one_that_waits_can_be_stopped(registry: Registry, fetch: Fetch) -> None:
    """`stop` ends the wait for another process."""
    gate = registry.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    first = threading.Thread(target=fetch)
    first.start()
    wait_until(lambda: registry.switches.requests(f"/{WEIGHTS}"))
    second = Fetch(fetch.url, fetch.cache)
    set_when(second.stop, lambda: "waiting" in second.told).start()
    assert "Stopped" in str(failure(second))
    gate.set()
    first.join()


def test_no_room_is_said_before_anything_is_fetched(
    registry: Registry, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes are known: what is missing, what is free, what to do."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    error = failure(fetch)
    assert not error.may_pass
    assert "needs 3.0 MB more, 1.0 MB are free" in str(error)
    assert registry.switches.requests(f"/{WEIGHTS}") == []


def test_an_unusable_cache_is_said(registry: Registry, tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "cache").write_text("not a folder")
    error = failure(Fetch(registry.url, tmp_path / "cache"))
    assert not error.may_pass
    assert "MODEL_CACHE" in str(error)


@pytest.mark.parametrize("path", ["../../escaped", "/etc/x", "a/../../x", "a\\..\\x"])
def test_a_hostile_listing_writes_nothing(fetch: Fetch, path: str) -> None:
    """A registry that names a file outside the folder is refused before anything is written."""
    listing = {"sha": "a" * 40, "siblings": [{"rfilename": path, "size": 1, "blobId": "b" * 40}]}
    with serving(Starlette(routes=[Route("/{path:path}", lambda _: JSONResponse(listing))])) as url:
        fetch.url = url
        error = failure(fetch)
    assert not error.may_pass
    assert repr(path) in str(error)
    assert list(home(fetch).iterdir()) == []
