"""The Hub's reading side, asked by the Hub's own client, from both stores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.open_store import open_store
from registry.settings import RegistrySettings
from tests.registry.conftest import new_file_settings, new_s3_settings
from tests.support import plain_http
from tests.support.hub import contents, serving_registry, small_repo

REPO = "test/small"
WEIGHTS = "model.safetensors"


@dataclass
class Served:
    """A registry that serves the small model, for all tests of this module: they only read."""

    url: str
    folder: Path
    manifest: Manifest


@pytest.fixture(scope="module", params=["file", pytest.param("s3", marks=pytest.mark.engines)])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """From a store of each kind."""
    home = tmp_path_factory.mktemp("served")
    settings = new_file_settings(home) if request.param == "file" else new_s3_settings(request)
    folder = small_repo(home / "repo")
    store = open_store(RegistrySettings(**settings))
    manifest = import_folder(Library(store, Catalogue([])), folder, name="small", repo=REPO, revision="main")
    store.close()
    with serving_registry(settings.pop("store"), **settings) as url:
        yield Served(url, folder, manifest)


@pytest.fixture
def url(served: Served) -> str:
    """Where it answers."""
    return served.url


@pytest.fixture
def repo_folder(served: Served) -> Path:
    """The folder that was imported."""
    return served.folder


@pytest.fixture
def published(served: Served) -> Manifest:
    """What was published."""
    return served.manifest


@pytest.fixture
def api(url: str) -> HfApi:
    """The Hub's client, pointed at the registry."""
    return HfApi(endpoint=url, token=False)


def test_snapshot_download_gives_every_byte(url: str, published: Manifest, repo_folder: Path, tmp_path: Path) -> None:
    """By repository and by name, at main and at the commit."""
    for repo, revision in ((REPO, None), ("small", None), (REPO, published.commit)):
        folder = snapshot_download(repo, revision=revision, endpoint=url, cache_dir=tmp_path / "cache", token=False)
        assert Path(folder).name == published.commit
        assert contents(Path(folder)) == contents(repo_folder)


def test_snapshot_download_into_a_folder_with_patterns(url: str, repo_folder: Path, tmp_path: Path) -> None:
    """`local_dir` and `allow_patterns` as with the Hub."""
    folder = snapshot_download(REPO, endpoint=url, local_dir=tmp_path / "here", allow_patterns=["*.json"], token=False)
    got = {path: data for path, data in contents(Path(folder)).items() if not path.startswith(".cache")}
    assert got == {path: data for path, data in contents(repo_folder).items() if path.endswith(".json")}


def test_hf_hub_download_resumes_and_takes_subfolders(url: str, repo_folder: Path, tmp_path: Path) -> None:
    """One file at a time, in a folder, and an empty one."""
    for name in ("1_Pooling/config.json", "empty.txt", WEIGHTS):
        got = hf_hub_download(REPO, name, endpoint=url, cache_dir=tmp_path, token=False)
        assert Path(got).read_bytes() == (repo_folder / name).read_bytes()


def test_model_info(api: HfApi, published: Manifest) -> None:
    """The commit, the files, and on request their sizes and digests."""
    info = api.model_info(REPO)
    assert (info.id, info.sha, info.private, info.gated) == (REPO, published.commit, False, False)
    assert info.siblings is not None
    assert {file.rfilename for file in info.siblings} == {file.path for file in published.files}
    detailed = api.model_info(REPO, revision=published.commit, files_metadata=True)
    assert detailed.siblings is not None
    by_path = {file.rfilename: file for file in detailed.siblings}
    for file in published.files:
        found = by_path[file.path]
        assert (found.size, found.blob_id) == (file.size, file.git_sha1)
        assert (found.lfs.sha256 if found.lfs else None) == (file.sha256 if file.lfs else None)
    assert by_path[WEIGHTS].lfs is not None
    assert by_path["config.json"].lfs is None


def test_digests_are_those_of_git(api: HfApi, repo_folder: Path) -> None:
    """The client's own check of a downloaded folder against the listing finds nothing wrong."""
    checked = api.verify_repo_checksums(REPO, local_dir=repo_folder)
    assert not checked.mismatches
    assert checked.checked_count == len(contents(repo_folder))


def test_tree(api: HfApi, published: Manifest) -> None:
    """Flat, recursive, of a folder, and with the last commit."""
    flat = list(api.list_repo_tree(REPO))
    assert [entry.path for entry in flat if isinstance(entry, RepoFolder)] == ["1_Pooling"]
    assert "1_Pooling/config.json" not in [entry.path for entry in flat]
    everything = list(api.list_repo_tree(REPO, recursive=True, expand=True))
    files = [entry for entry in everything if isinstance(entry, RepoFile)]
    assert [file.path for file in files] == [file.path for file in published.files]
    assert all(entry.last_commit and entry.last_commit.oid == published.commit for entry in everything)
    inside = list(api.list_repo_tree(REPO, "1_Pooling"))
    assert [entry.path for entry in inside] == ["1_Pooling/config.json"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere"))


def test_tree_comes_in_pages(url: str, published: Manifest) -> None:
    """The Link header leads through all of it, each entry once."""
    seen: list[str] = []
    page: str | None = f"{url}/api/models/{REPO}/tree/main?recursive=true&limit=2"
    while page is not None:
        answer = plain_http.get(page)
        seen += [entry["path"] for entry in answer.json()]
        page = answer.links.get("next", {}).get("url")
    assert seen == sorted([file.path for file in published.files] + ["1_Pooling"])


def test_paths_info_and_refs_and_commits(api: HfApi, published: Manifest) -> None:
    """Some files, a folder, nothing for what is not there; main as the one branch; the commit as the history."""
    found = api.get_paths_info(REPO, ["config.json", "1_Pooling", "nowhere"], expand=True)
    assert [(type(entry), entry.path) for entry in found] == [(RepoFile, "config.json"), (RepoFolder, "1_Pooling")]
    refs = api.list_repo_refs(REPO)
    assert [(ref.name, ref.target_commit) for ref in refs.branches] == [("main", published.commit)]
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [published.commit]


def test_search_and_existence(api: HfApi) -> None:
    """By words, by author; file_exists, repo_exists, revision_exists."""
    assert [model.id for model in api.list_models(search="SMALL")] == [REPO]
    assert [model.id for model in api.list_models(author="test")] == [REPO]
    assert list(api.list_models(search="large")) == []
    assert api.repo_exists(REPO)
    assert not api.repo_exists("test/large")
    assert api.file_exists(REPO, "config.json")
    assert not api.file_exists(REPO, "nowhere.json")
    assert api.revision_exists(REPO, "main")
    assert not api.revision_exists(REPO, "v9")


def test_the_clients_errors(api: HfApi, url: str, tmp_path: Path) -> None:
    """Each thing that is not here raises the client's own error for it."""
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("test/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download(REPO, revision="v9", endpoint=url, cache_dir=tmp_path, token=False)
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "nowhere.json", endpoint=url, cache_dir=tmp_path, token=False)
    # The client notes which commit lacks the file, from the header of the 404.
    assert list(tmp_path.rglob(".no_exist/*/nowhere.json"))


def test_head_never_redirects_and_names_the_commit(url: str, published: Manifest) -> None:
    """200 with commit, digest and size, and nothing that would lead a client to another storage."""
    for file in published.files:
        answer = plain_http.head(f"{url}/{REPO}/resolve/main/{file.path}", follow_redirects=False)
        assert answer.status_code == 200
        assert answer.headers["x-repo-commit"] == published.commit
        assert answer.headers["etag"] == f'"{file.sha256 if file.lfs else file.git_sha1}"'
        assert answer.headers["content-length"] == str(file.size)
        assert answer.headers.get("x-linked-size") == (str(file.size) if file.lfs else None)
        assert "content-encoding" not in answer.headers
        assert not [name for name in answer.headers if "xet" in name]
        assert "xet" not in answer.headers.get("link", "")


def test_ranges(url: str, repo_folder: Path) -> None:
    """206 for a part, the whole for none, 416 past the end."""
    address, data = f"{url}/{REPO}/resolve/main/{WEIGHTS}", (repo_folder / WEIGHTS).read_bytes()
    for asked, expected in (("bytes=0-0", data[:1]), ("bytes=100-", data[100:]), ("bytes=-5", data[-5:])):
        answer = plain_http.get(address, headers={"Range": asked}, follow_redirects=True)
        assert (answer.status_code, answer.content) == (206, expected)
    assert plain_http.get(address, follow_redirects=True).content == data
    past = plain_http.get(address, headers={"Range": f"bytes={len(data)}-"}, follow_redirects=True)
    assert past.status_code == 416


def test_a_client_that_has_the_file_is_told_so(url: str, published: Manifest) -> None:
    """If-None-Match with our ETag: 304 without a body."""
    file = next(file for file in published.files if file.path == WEIGHTS)
    answer = plain_http.get(f"{url}/{REPO}/resolve/main/{WEIGHTS}", headers={"If-None-Match": f'"{file.etag}"'})
    assert (answer.status_code, answer.content) == (304, b"")


def test_head_of_the_api(url: str) -> None:
    """Mirrors such as olah ask HEAD before GET."""
    for path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/tree/main"):
        answer = plain_http.head(url + path)
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) > 2


@pytest.mark.parametrize(
    "path",
    [
        *("/test/small/resolve/main/..%2f..%2fnames%2fsmall.json", "/test/small/resolve/main/%2e%2e/x"),
        *("/test/small/resolve/..%2f..%2fx/config.json", "/..%2fsmall/resolve/main/config.json", "/a%2fresolve%2fx"),
        *(
            "/test/small/resolve/main/a%00b",
            "/test/small/resolve/main/a%5c..%5cb",
            "/test/small/resolve/main//etc/passwd",
        ),
        *(
            "/api/models/..%2f..%2fetc",
            "/api/models/a/b/c",
            "/api/models/test/small/tree/main/..%2f..",
            "/api/models/%00",
        ),
        *(
            "/api/models/test/small/revision/..%2fx",
            "/api/models/test%2fsmall%2f..",
            "/api/models/test/small/blob/main/x",
        ),
        *("/models/..%2f..%2fx", "/models/%2e%2e", "/models/a%00b", "/models/%ff", "/test/small/resolve/main/%ff%fe"),
        *("/api/models/test/small/tree/main?cursor=%21", "/api/models/test/small/tree/main?limit=0", "/api/models/"),
        *("/api/models?limit=x", "/test/small/resolve/main", "/test/small/resolve/", "/api/models/test/small/x"),
    ],
)
def test_hostile_addresses_are_refused(url: str, path: str) -> None:
    """400 or 404 in the envelope, never a file from elsewhere, never a bug's 500."""
    answer = plain_http.get(url + path, follow_redirects=False)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"paths=config.json&expand=True", b'{"paths": ["config.json"], "expand": true}'])
def test_paths_info_takes_forms_and_json(url: str, body: bytes) -> None:
    """huggingface_hub sends a form, huggingface.js sends JSON."""
    kind = "application/json" if body.startswith(b"{") else "application/x-www-form-urlencoded"
    answer = plain_http.post(f"{url}/api/models/{REPO}/paths-info/main", content=body, headers={"content-type": kind})
    assert [entry["path"] for entry in answer.json()] == ["config.json"]


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"paths": [1]}', b'{"paths": "x"}', b"\xff"])
def test_paths_info_refuses_nonsense(url: str, body: bytes) -> None:
    """A 400 that says what is wanted."""
    address = f"{url}/api/models/{REPO}/paths-info/main"
    answer = plain_http.post(address, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_writing_is_not_offered(url: str) -> None:
    """POSTs of the Hub's writing side are 404s that say so."""
    answer = plain_http.post(f"{url}/api/models/{REPO}/commit/main", content=b"{}")
    assert answer.status_code == 404
    assert "reading side" in answer.json()["error"]["message"]


def test_the_client_is_the_one_this_was_written_for() -> None:
    """Another major version of the client should be looked at before it is trusted."""
    assert huggingface_hub.__version__.split(".")[0] == "2"


def test_a_model_that_is_deleted_while_all_are_listed(origin: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out; the others are there."""
    place = Path(origin.store.where.removeprefix("file:"))
    repos = Library.repos

    def deleting(library: Library) -> list[str]:
        found = repos(library)
        library.delete("one", spare=set)
        return found

    monkeypatch.setattr(Library, "repos", deleting)
    with serving_registry(place) as url:
        listed = plain_http.get(f"{url}/api/models")
    assert (listed.status_code, [model["id"] for model in listed.json()]) == (200, ["test/two"])
