"""A model that is asked for while it is being mirrored is given as it comes, and nobody gets a wrong file whole."""

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from kit.config.catalogue import Catalogue
from kit.net.retry import RetryPolicy
from registry.api import long_wait
from registry.download import relay
from registry.download.arrival import RESERVE
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from registry.store.part_size import MIN_PART
from tests.registry.conftest import REPO, WEIGHTS, Source, StoreSettings
from tests.registry.safety.test_policy import EVIL, HARMLESS
from tests.support import plain_http
from tests.support.hub import (
    Switches,
    contents,
    random_bytes,
    serving_registry,
    small_repo,
    wait_for_job,
    wait_until,
)
from tests.support.programs.registry_process import RegistryProcess

SIZE = 2 * MIN_PART + 5000
PARTS = 3
FILE = f"/{REPO}/resolve/main/{WEIGHTS}"
CONTENT = random_bytes("a", SIZE)


@pytest.fixture
def big(tmp_path: Path) -> Iterator[Source]:
    """A source whose weights come in three parts, of which all but the first are held back by `gate`."""
    store, switches = tmp_path / "hub", Switches()
    library = Library(FileStore(store), Catalogue([]))
    folder = small_repo(tmp_path / "repo", weights=SIZE)
    manifest = import_folder(library, folder, name="small", repo=REPO, revision="main")
    switches.gate[f"/{WEIGHTS}"], switches.gate_from[f"/{WEIGHTS}"] = threading.Event(), MIN_PART
    with serving_registry(store, switches=switches) as url:
        yield Source(url, switches, manifest, store)


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(f"small: {{kind: llm, hf_repo: {REPO}}}\n")
    return path


@pytest.fixture
def mirror(big: Source, catalogue: Path, tmp_path: Path) -> Iterator[str]:
    """A registry over an empty folder whose catalogue has the source's model as `small`."""
    with serving_registry(tmp_path / "mirror", hf_endpoint=big.url, catalogue=catalogue, mirror_missing=True) as url:
        yield url
        open_gate(big)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


class Reader:
    """A client that reads one file bit by bit. A context manager."""

    def __init__(self, url: str, *, start: int = 0) -> None:
        self.got = bytearray()
        self._stack = contextlib.ExitStack()
        client = self._stack.enter_context(httpx2.Client(verify=False, trust_env=False, timeout=20.0))
        headers = {"Range": f"bytes={start}-"} if start else {}
        self.answer = self._stack.enter_context(client.stream("GET", url, headers=headers))
        self._pieces = self.answer.iter_raw()

    def read(self, count: int) -> bytearray:
        """All that came, once it is `count` bytes or more."""
        while len(self.got) < count:
            self.got += next(self._pieces)
        return self.got

    def rest(self) -> bytearray:
        """All of it. Raises httpx2.RemoteProtocolError when the answer breaks off; `got` has what came."""
        for piece in self._pieces:
            self.got += piece
        return self.got

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def open_gate(source: Source) -> None:
    source.switches.gate[f"/{WEIGHTS}"].set()


def files_done(url: str) -> int:
    return int(plain_http.get(f"{url}/models/small").json().get("progress", {}).get("files_done", 0))


def message(answer: httpx2.Response) -> str:
    return str(answer.json()["error"]["message"])


def test_a_file_comes_while_it_is_mirrored(big: Source, mirror: str) -> None:
    """What is there of it is given, though the source holds the rest; the model appears when all is there."""
    with Reader(mirror + FILE) as reader:
        assert reader.read(MIN_PART - RESERVE) == CONTENT[: MIN_PART - RESERVE]
        assert reader.answer.headers["content-length"] == str(SIZE)
        assert reader.answer.headers["etag"] == f'"{next(f for f in big.manifest.files if f.path == WEIGHTS).etag}"'
        assert reader.answer.headers["x-repo-commit"] == big.manifest.commit
        assert plain_http.get(f"{mirror}/models/small").json()["status"] == "downloading"
        assert plain_http.get(f"{mirror}/api/models").json() == []
        open_gate(big)
        assert reader.rest() == CONTENT
    assert wait_for_job(mirror, "small")["status"] == "ready"
    assert plain_http.get(mirror + FILE).content == CONTENT
    assert len(big.switches.requests(f"/{WEIGHTS}")) == PARTS


def test_what_is_here_is_given_before_the_rest(big: Source, mirror: str, tmp_path: Path) -> None:
    """List and small files, by the Hub's client, while the weights are held back."""
    found = hf_hub_download(REPO, "config.json", endpoint=mirror, cache_dir=tmp_path / "client")
    assert Path(found).read_bytes() == contents(tmp_path / "repo")["config.json"]
    tree = plain_http.get(f"{mirror}/api/models/{REPO}/tree/{big.manifest.commit}?recursive=true").json()
    assert {entry["path"] for entry in tree if entry["type"] == "file"} == {file.path for file in big.manifest.files}
    head = plain_http.head(mirror + FILE)
    assert (head.status_code, head.headers["x-linked-size"]) == (200, str(SIZE))
    none = plain_http.get(f"{mirror}/{REPO}/resolve/main/none")
    assert (none.status_code, none.headers["x-error-code"]) == (404, "EntryNotFound")
    other = plain_http.get(f"{mirror}/{REPO}/resolve/{'0' * 40}/config.json")
    assert (other.status_code, other.headers["x-error-code"]) == (404, "RepoNotFound")
    assert not big.switches.gate[f"/{WEIGHTS}"].is_set()


def test_four_clients_at_once(big: Source, mirror: str, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Each has every byte, and the source has sent it once."""
    asked = [pool.submit(snapshot_download, REPO, endpoint=mirror, local_dir=tmp_path / f"c{n}") for n in range(4)]
    wait_until(lambda: len(list((tmp_path / "mirror" / "unproved").glob("*.json"))) == 1)
    open_gate(big)
    for number, each in enumerate(asked):
        each.result()
        assert (tmp_path / f"c{number}" / WEIGHTS).read_bytes() == CONTENT
    assert len(big.switches.requests(f"/{WEIGHTS}")) == PARTS
    wait_until(lambda: not list((tmp_path / "mirror").glob("unproved/*.json")))


def test_a_client_goes_on_where_it_was(big: Source, mirror: str) -> None:
    """While the same bytes are on their way, and at once for what there is."""
    with Reader(mirror + FILE) as reader:
        reader.read(1000)
    with Reader(mirror + FILE, start=1000) as reader:
        assert reader.answer.status_code == 206
        assert reader.answer.headers["content-range"] == f"bytes 1000-{SIZE - 1}/{SIZE}"
        reader.read(1000)
        open_gate(big)
        assert reader.rest() == CONTENT[1000:]


def test_a_range_waits_until_the_file_is_right(big: Source, mirror: str, pool: ThreadPoolExecutor) -> None:
    """Who fetches pieces in any order may put together a file of the right size from two tries."""
    asked = pool.submit(plain_http.get, mirror + FILE, headers={"Range": "bytes=0-99"})
    with Reader(mirror + FILE) as reader:
        reader.read(1000)
        assert not asked.done()
        open_gate(big)
    answer = asked.result()
    assert (answer.status_code, answer.content) == (206, CONTENT[:100])
    assert wait_for_job(mirror, "small")["status"] == "ready"


def test_a_wrong_file_is_never_whole(big: Source, mirror: str) -> None:
    """It is cut off before its end, and who asks again hears which file it was."""
    big.switches.corrupt.add(WEIGHTS)
    with Reader(mirror + FILE) as reader:
        reader.read(1000)
        open_gate(big)
        with pytest.raises(httpx2.RemoteProtocolError):
            reader.rest()
    assert 0 < len(reader.got) <= SIZE - RESERVE
    assert wait_for_job(mirror, "small")["status"] == "failed"
    for path in (FILE, FILE.replace("main", big.manifest.commit)):
        answer = plain_http.get(mirror + path)
        assert answer.status_code == 503
        assert f"{WEIGHTS} of {REPO} arrived damaged" in message(answer)


def test_the_hubs_client_keeps_no_wrong_file(big: Source, mirror: str, tmp_path: Path) -> None:
    """It asks again by itself, and then says what the registry said."""
    big.switches.corrupt.add(WEIGHTS)
    open_gate(big)
    with pytest.raises(HfHubHTTPError, match=f"{WEIGHTS} of {REPO} arrived damaged"):
        snapshot_download(REPO, endpoint=mirror, local_dir=tmp_path / "client")
    assert not (tmp_path / "client" / WEIGHTS).exists()


def test_the_rest_of_a_right_file_is_not_put_behind_a_wrong_beginning(big: Source, mirror: str) -> None:
    """The source errs once: whoever holds a beginning from then gets the whole file, now and later."""
    big.switches.corrupt_times[WEIGHTS] = PARTS
    with Reader(mirror + FILE) as reader:
        wrong = bytes(reader.read(1000)[:1000])
        open_gate(big)
        with pytest.raises(httpx2.RemoteProtocolError):
            reader.rest()
    assert wrong != CONTENT[:1000]
    assert wait_for_job(mirror, "small")["status"] == "ready"
    for start in (1000, len(reader.got)):
        answer = plain_http.get(mirror + FILE, headers={"Range": f"bytes={start}-"})
        assert (answer.status_code, answer.content) == (200, CONTENT)
    piece = plain_http.get(mirror + FILE, headers={"Range": "bytes=5-9"})
    assert (piece.status_code, piece.content) == (206, CONTENT[5:10])


def test_the_hubs_client_ends_with_the_right_file(big: Source, mirror: str, tmp_path: Path) -> None:
    """The same by huggingface_hub, which goes on by itself."""
    big.switches.corrupt_times[WEIGHTS] = PARTS
    open_gate(big)
    snapshot_download(REPO, endpoint=mirror, local_dir=tmp_path / "client")
    assert (tmp_path / "client" / WEIGHTS).read_bytes() == CONTENT


def test_a_source_that_dies_is_told(
    big: Source, catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is cut off, not left hanging, and the next question says why; then it goes on where it was."""
    monkeypatch.setattr("registry.app.RETRY_POLICY", RetryPolicy(max_attempts=2, initial_backoff_s=0.01))
    settings: dict[str, Any] = {"hf_endpoint": big.url, "catalogue": catalogue, "mirror_missing": True}
    with serving_registry(tmp_path / "mirror", **settings) as url:
        with Reader(url + FILE) as reader:
            reader.read(1000)
            big.switches.dead = True
            with pytest.raises(httpx2.RemoteProtocolError):
                reader.rest()
        assert wait_for_job(url, "small")["status"] == "failed"
        assert WEIGHTS in message(plain_http.get(url + FILE))
        big.switches.dead = False
        open_gate(big)
        plain_http.post(f"{url}/models/small/download")
        assert plain_http.get(url + FILE).content == CONTENT
    assert len([each for each in big.switches.requests(f"/{WEIGHTS}") if each["range"].startswith("bytes=0-")]) == 1


def test_a_client_that_leaves_is_not_missed(big: Source, mirror: str) -> None:
    """The download goes on, and nothing that it read by stays open."""
    with Reader(mirror + FILE) as reader:
        reader.read(1000)
        assert open_uploads()
    open_gate(big)
    assert wait_for_job(mirror, "small")["status"] == "ready"
    wait_until(lambda: not open_uploads())


def open_uploads() -> list[str]:
    """The descriptors of this process on files that arrive, those that read only."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            mode = Path(f"/proc/self/fdinfo/{link.name}").read_text()
            flags = int(mode.partition("flags:")[2].split()[0], 8)
            if ("/uploads/" in target or "/blobs/" in target) and flags & os.O_ACCMODE == os.O_RDONLY:
                found.append(target)
    return found


def test_kill_9_in_the_middle(big: Source, catalogue: Path, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """The Hub's client goes on by itself when the registry is there again, and has the right file."""
    registry = RegistryProcess(tmp_path / "mirror", hf_endpoint=big.url, catalogue=catalogue)
    registry.environment["MIRROR_MISSING"] = "yes"
    with registry:
        asked = pool.submit(snapshot_download, REPO, endpoint=registry.url, local_dir=tmp_path / "client")
        wait_until(lambda: any(path.stat().st_size > 1000 for path in (tmp_path / "client").rglob("*.incomplete")))
        registry.kill()
        open_gate(big)
        registry.start()
        asked.result(60)
    assert (tmp_path / "client" / WEIGHTS).read_bytes() == CONTENT


@pytest.mark.parametrize(("content", "status"), [(EVIL, 503), (HARMLESS, 200)], ids=["evil", "harmless"])
def test_a_pickle_waits_for_its_scan(
    content: bytes, status: int, catalogue: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Nobody hears of a model before what may run code in it was looked at; one that is refused is told by name."""
    folder, switches = small_repo(tmp_path / "repo"), Switches()
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    import_folder(Library(FileStore(tmp_path / "hub"), Catalogue([])), folder, name="s", repo=REPO, revision="main")
    gate = switches.gate["/pytorch_model.bin"] = threading.Event()
    with (
        serving_registry(tmp_path / "hub", switches=switches) as hub,
        serving_registry(tmp_path / "mirror", hf_endpoint=hub, catalogue=catalogue, mirror_missing=True) as url,
    ):
        asked = pool.submit(plain_http.get, f"{url}/{REPO}/resolve/main/pytorch_model.bin")
        wait_until(lambda: files_done(url) == 5)
        assert not asked.done()
        gate.set()
        answer = asked.result()
    assert answer.status_code == status
    if status == 200:
        assert answer.content == content
    else:
        assert "pytorch_model.bin" in message(answer)


def test_what_begins_like_a_pickle_waits_too(catalogue: Path, tmp_path: Path) -> None:
    """Whatever it is called: not a byte of it goes out."""
    folder = small_repo(tmp_path / "repo")
    (folder / WEIGHTS).write_bytes(EVIL + bytes(2 * MIN_PART))
    import_folder(Library(FileStore(tmp_path / "hub"), Catalogue([])), folder, name="s", repo=REPO, revision="main")
    with (
        serving_registry(tmp_path / "hub") as hub,
        serving_registry(tmp_path / "mirror", hf_endpoint=hub, catalogue=catalogue, mirror_missing=True) as url,
        Reader(url + FILE) as reader,
    ):
        if reader.answer.status_code == 200:  # it had not come yet
            with pytest.raises(httpx2.RemoteProtocolError):
                reader.rest()
            assert not reader.got
        assert WEIGHTS in wait_for_job(url, "small")["error"]


def test_an_older_commit_is_served_meanwhile(big: Source, mirror: str, tmp_path: Path) -> None:
    """`main` stays what it was until the new one is whole; by its own id the new one is given as it comes."""
    open_gate(big)
    assert plain_http.get(mirror + FILE).content == CONTENT
    assert wait_for_job(mirror, "small")["status"] == "ready"
    folder = small_repo(tmp_path / "new", seed="b", weights=SIZE)
    new = import_folder(Library(FileStore(big.store), Catalogue([])), folder, name="small", repo=REPO, revision="main")
    gate = big.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    plain_http.post(f"{mirror}/models/small/download")
    wait_until(lambda: len(big.switches.requests(f"/{WEIGHTS}")) > PARTS)
    assert plain_http.get(mirror + FILE).content == CONTENT
    with Reader(mirror + FILE.replace("main", new.commit)) as reader:
        reader.read(1000)
        assert plain_http.head(mirror + FILE).headers["x-repo-commit"] == big.manifest.commit
        gate.set()
        assert reader.rest() == random_bytes("b", SIZE)
    assert wait_for_job(mirror, "small")["status"] == "ready"
    assert plain_http.head(mirror + FILE).headers["x-repo-commit"] == new.commit


def test_a_slow_line_is_no_silence(big: Source, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients take ten seconds without a byte for an end: they get the beginning in drops."""
    monkeypatch.setattr(relay, "DROP_EVERY_S", 0.01)
    big.switches.gate_from[f"/{WEIGHTS}"] = 1 << 20
    with Reader(mirror + FILE) as reader:
        assert reader.read(5) == CONTENT[:5]
        open_gate(big)
        assert reader.rest() == CONTENT


def test_a_registry_mirrors_from_one_that_mirrors_only_now(big: Source, mirror: str, tmp_path: Path) -> None:
    """It asks for parts in any order, and so waits for the whole model."""
    with serving_registry(tmp_path / "edge", hf_endpoint=mirror) as edge:
        plain_http.post(f"{edge}/models/small/download", json={"hf_repo": REPO})
        wait_until(lambda: files_done(mirror) == 5)
        open_gate(big)
        assert wait_for_job(edge, "small")["status"] == "ready"
        assert plain_http.get(edge + FILE).content == CONTENT


def test_from_a_bucket_it_comes_too(
    big: Source, catalogue: Path, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From every store: where what arrives cannot be read yet, in drops at first, and then the rest of it."""
    monkeypatch.setattr(long_wait, "QUIET_S", 0.2)
    monkeypatch.setattr(relay, "DROP_EVERY_S", 0.01)
    settings = {**store_settings, "hf_endpoint": big.url, "catalogue": catalogue, "mirror_missing": True}
    with serving_registry(settings.pop("store"), **settings) as url:
        wait_until(lambda: plain_http.head(url + FILE).status_code == 200)
        with Reader(url + FILE) as reader:
            assert reader.read(5)[:5] == CONTENT[:5]
            open_gate(big)
            assert reader.rest() == CONTENT
        assert wait_for_job(url, "small")["status"] == "ready"
    assert len(big.switches.requests(f"/{WEIGHTS}")) == PARTS
