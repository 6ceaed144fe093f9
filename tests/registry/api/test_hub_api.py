"""The read side of the Hub's API, tested with the Hub's own client, on both stores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
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
    """On a store of each kind."""
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
    """The URL of the registry."""
    return served.url


@pytest.fixture
def repo_folder(served: Served) -> Path:
    """The folder that was imported."""
    return served.folder


@pytest.fixture
def published(served: Served) -> Manifest:
    """The published manifest."""
    return served.manifest


@pytest.fixture
def api(url: str) -> HfApi:
    """The Hub's client, pointed at the registry."""
    return HfApi(endpoint=url, token=False)


def test_snapshot_download_by_repository_and_name(
    url: str, published: Manifest, repo_folder: Path, tmp_path: Path
) -> None:
    for repo, revision in ((REPO, None), ("small", None), (REPO, published.commit)):
        folder = snapshot_download(repo, revision=revision, endpoint=url, cache_dir=tmp_path / "cache", token=False)
        assert Path(folder).name == published.commit
        assert contents(Path(folder)) == contents(repo_folder)


def test_snapshot_download_into_a_folder_with_patterns(url: str, repo_folder: Path, tmp_path: Path) -> None:
    folder = snapshot_download(REPO, endpoint=url, local_dir=tmp_path / "here", allow_patterns=["*.json"], token=False)
    got = {path: data for path, data in contents(Path(folder)).items() if not path.startswith(".cache")}
    assert got == {path: data for path, data in contents(repo_folder).items() if path.endswith(".json")}


def test_hf_hub_download_of_subfolder_and_empty_file(url: str, repo_folder: Path, tmp_path: Path) -> None:
    for name in ("1_Pooling/config.json", "empty.txt", WEIGHTS):
        got = hf_hub_download(REPO, name, endpoint=url, cache_dir=tmp_path, token=False)
        assert Path(got).read_bytes() == (repo_folder / name).read_bytes()


def test_model_info_has_commit_files_and_digests(api: HfApi, published: Manifest) -> None:
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


def test_listed_digests_pass_the_clients_own_verification(api: HfApi, repo_folder: Path) -> None:
    checked = api.verify_repo_checksums(REPO, local_dir=repo_folder)
    assert not checked.mismatches
    assert checked.checked_count == len(contents(repo_folder))


def test_tree_lists_files_and_folders(api: HfApi, published: Manifest) -> None:
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


def test_tree_is_paged_by_link_header(url: str, published: Manifest) -> None:
    seen: list[str] = []
    page: str | None = f"{url}/api/models/{REPO}/tree/main?recursive=true&limit=2"
    while page is not None:
        answer = plain_http.get(page)
        seen += [entry["path"] for entry in answer.json()]
        page = answer.links.get("next", {}).get("url")
    assert seen == sorted([file.path for file in published.files] + ["1_Pooling"])


def test_paths_info_refs_and_commits(api: HfApi, published: Manifest) -> None:
    found = api.get_paths_info(REPO, ["config.json", "1_Pooling", "nowhere"], expand=True)
    assert [(type(entry), entry.path) for entry in found] == [(RepoFile, "config.json"), (RepoFolder, "1_Pooling")]
    refs = api.list_repo_refs(REPO)
    assert [(ref.name, ref.target_commit) for ref in refs.branches] == [("main", published.commit)]
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [published.commit]


def test_search_and_existence_checks(api: HfApi) -> None:
    assert [model.id for model in api.list_models(search="SMALL")] == [REPO]
    assert [model.id for model in api.list_models(author="test")] == [REPO]
    assert list(api.list_models(search="large")) == []
    assert api.repo_exists(REPO)
    assert not api.repo_exists("test/large")
    assert api.file_exists(REPO, "config.json")
    assert not api.file_exists(REPO, "nowhere.json")
    assert api.revision_exists(REPO, "main")
    assert not api.revision_exists(REPO, "v9")


def test_missing_things_raise_the_clients_own_errors(api: HfApi, url: str, tmp_path: Path) -> None:
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


def test_head_has_commit_and_digest_and_never_redirects(url: str, published: Manifest) -> None:
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


@pytest.mark.parametrize("is_page", [False, True])
def test_ranges_give_206_and_416(url: str, repo_folder: Path, is_page: bool) -> None:
    """A page gets the bytes without a redirection to S3, which it might not reach or be allowed to read."""
    address, data = f"{url}/{REPO}/resolve/main/{WEIGHTS}", (repo_folder / WEIGHTS).read_bytes()
    origin = {"Origin": url} if is_page else {}

    def get(**headers: str) -> httpx2.Response:
        return plain_http.get(address, headers={**origin, **headers}, follow_redirects=not is_page)

    for asked, expected in (("bytes=0-0", data[:1]), ("bytes=100-", data[100:]), ("bytes=-5", data[-5:])):
        answer = get(Range=asked)
        assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["content-range"].endswith(f"/{len(data)}")
    whole = get()
    assert (whole.status_code, whole.content, whole.headers["content-length"]) == (200, data, str(len(data)))
    assert get(Range=f"bytes={len(data)}-").status_code == 416
    if is_page:
        assert get(**{"Range": "bytes=0-0", "If-Range": '"another"'}).status_code == 200


def test_raw_is_the_content_in_git(url: str, published: Manifest, repo_folder: Path) -> None:
    """The pointer of an LFS file (https://huggingface.co/docs/hub/api); HEAD and ranges as for `resolve`."""
    for file in published.files:
        address = f"{url}/{REPO}/raw/main/{file.path}"
        data = (repo_folder / file.path).read_bytes()
        if file.lfs:
            data = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (
                file.sha256.encode(),
                file.size,
            )
        head = plain_http.head(address)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(data)))
        assert (head.headers["etag"], head.headers["x-repo-commit"]) == (f'"{file.git_sha1}"', published.commit)
        assert "x-linked-etag" not in head.headers
        assert plain_http.get(address, follow_redirects=True).content == data
        matching = plain_http.get(address, headers={"If-None-Match": head.headers["etag"]})
        assert (matching.status_code, matching.content) == (304, b"")
        for asked, part in (("0-0", data[:1]), ("3-5", data[3:6]), ("7-", data[7:]), ("99999999-", b"")):
            answer = plain_http.get(address, headers={"Range": f"bytes={asked}"}, follow_redirects=True)
            if data:
                assert answer.status_code == (206 if part else 416)
                assert answer.content == part or not part
            assert answer.headers["content-range"].endswith(f"/{len(data)}")
    missing = plain_http.head(f"{url}/{REPO}/raw/main/none")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")


def test_models_are_paged_by_link_header(origin: Library) -> None:
    """All of them are listed, by huggingface_hub too, which asks for the pages that `Link` names."""
    seen: list[str] = []
    with serving_registry(Path(origin.store.where.removeprefix("file:"))) as served:
        page: str | None = f"{served}/api/models?limit=1&expand=a&expand=b"
        while page is not None:
            answer = plain_http.get(page)
            seen += [entry["id"] for entry in answer.json()]
            page = answer.links.get("next", {}).get("url")
            assert page is None or page.count("expand=") == 2
        assert plain_http.get(f"{served}/api/models?limit=0").json() == []
        assert [model.id for model in HfApi(endpoint=served, token=False).list_models(limit=1)] == ["test/one"]
    assert seen == ["test/one", "test/two"]


def test_names_of_all_models_fit_into_a_header(origin: Library) -> None:
    """Node refuses a response with more than 16 KB of headers; the body names all."""
    manifest = origin.manifest("test/one", "main")
    for number in range(200):
        origin.publish(
            name=f"m{number}", repo=f"{'organisation' * 7}/m{number}", revision="main", commit=manifest.commit,
            files=manifest.files, source=manifest.source,
        )  # fmt: skip
    with serving_registry(Path(origin.store.where.removeprefix("file:"))) as served:
        response = plain_http.get(f"{served}/api/models/no/such")
    header = response.headers["x-error-message"]
    assert header.startswith("The repository 'no/such' is not in this registry.")
    assert header.endswith("...")
    assert sum(len(name) + len(value) for name, value in response.headers.items()) < 4096
    assert all(f"/m{number}" in response.text for number in range(200))


@pytest.mark.parametrize("asked", ["bytes=0-0", "bytes=0-", "bytes=5-9"])
def test_ranges_of_an_empty_file_give_200_and_its_size(url: str, asked: str) -> None:
    """huggingface.js asks for the first byte of each file, reads the size, and accepts no 416."""
    answer = plain_http.get(f"{url}/{REPO}/resolve/main/empty.txt", headers={"Range": asked}, follow_redirects=True)
    assert (answer.status_code, answer.headers["content-range"], answer.content) == (200, "bytes */0", b"")


def test_matching_etag_gives_304(url: str, published: Manifest) -> None:
    file = next(file for file in published.files if file.path == WEIGHTS)
    answer = plain_http.get(f"{url}/{REPO}/resolve/main/{WEIGHTS}", headers={"If-None-Match": f'"{file.etag}"'})
    assert (answer.status_code, answer.content) == (304, b"")


def test_api_supports_head(url: str) -> None:
    """Mirrors such as olah send HEAD before GET. So do health checkers, on the registry's own routes."""
    own = ("/health", "/models", "/models/small", "/metrics", "/docs", "/openapi.json", "/api/models")
    for path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/tree/main", *own):
        answer = plain_http.head(url + path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 2
    events = plain_http.head(f"{url}/models/small/events")
    assert (events.status_code, events.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


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
        *("/api/models/test/small/tree/main?cursor=%21", "/api/models/test/small/tree/main?limit=0"),
        *("/api/models?limit=x", "/test/small/resolve/main", "/test/small/resolve/", "/api/models/test/small/x"),
    ],
)
def test_malformed_paths_are_client_errors(url: str, path: str) -> None:
    answer = plain_http.get(url + path, follow_redirects=False)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"paths=config.json&expand=True", b'{"paths": ["config.json"], "expand": true}'])
def test_paths_info_accepts_forms_and_json(url: str, body: bytes) -> None:
    """huggingface_hub sends a form, huggingface.js sends JSON."""
    kind = "application/json" if body.startswith(b"{") else "application/x-www-form-urlencoded"
    answer = plain_http.post(f"{url}/api/models/{REPO}/paths-info/main", content=body, headers={"content-type": kind})
    assert [entry["path"] for entry in answer.json()] == ["config.json"]


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"paths": [1]}', b'{"paths": "x"}', b"\xff"])
def test_paths_info_rejects_malformed_bodies(url: str, body: bytes) -> None:
    address = f"{url}/api/models/{REPO}/paths-info/main"
    answer = plain_http.post(address, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


DEEP = [
    opening * depth + filling + closing * depth * closed
    for opening, filling, closing in ((b"[", b"", b"]"), (b'{"paths":', b"1", b"}"), (b'{"paths":[', b"", b"]}"))
    for depth in (1000, 300_000)
    for closed in (False, True)
] + [b"[" * 2_000_000]  # fmt: skip


@pytest.mark.parametrize("body", DEEP, ids=lambda body: f"{body[:12].decode()}-{len(body)}")
@pytest.mark.parametrize("path", [f"/api/models/{REPO}/paths-info/main", "/models/small/download"])
def test_deeply_nested_json_is_a_client_error(url: str, path: str, body: bytes) -> None:
    """Every route that takes JSON."""
    answer = plain_http.post(url + path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_write_side_of_the_api_is_404(url: str) -> None:
    answer = plain_http.post(f"{url}/api/models/{REPO}/commit/main", content=b"{}")
    assert answer.status_code == 404
    assert "read API" in answer.json()["error"]["message"]


def test_major_version_of_the_client_is_known() -> None:
    """Review a new major version of the client before accepting it."""
    assert huggingface_hub.__version__.split(".")[0] == "2"


def test_model_deleted_during_listing_is_left_out(origin: Library, monkeypatch: pytest.MonkeyPatch) -> None:
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
