"""Ids and revisions as the Hub accepts them: another letter case, renamed repositories, HEAD, short commits."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.store.file_store import FileStore
from tests.registry.conftest import REPO, Source
from tests.support import plain_http
from tests.support.hub import contents, serving, serving_registry, small_repo, wait_for_job

OLD = "old-org/legacy"


@pytest.fixture
def renaming_hub(source: Source) -> Iterator[str]:
    """A Hub where `old-org/legacy` has become `test/small`: it redirects as huggingface.co does, relatively."""

    async def moved(request: Request) -> RedirectResponse:
        target = request.url.path.replace(OLD, REPO)
        return RedirectResponse(f"{target}?{request.url.query}", status_code=307)

    routes = [Route(f"/api/models/{OLD}/{{rest:path}}", moved), Route(f"/{OLD}/{{rest:path}}", moved)]
    with serving(Starlette(routes=[*routes, Mount("/", app=source.switches)])) as url:
        yield url


def test_a_renamed_repository_has_both_names(source: Source, renaming_hub: str, tmp_path: Path) -> None:
    """Mirrored by its old name; a second registry that mirrors from the first by either name knows both as well."""
    with serving_registry(tmp_path / "first", hf_endpoint=renaming_hub) as url:
        plain_http.post(f"{url}/models/legacy/download", json={"hf_repo": OLD})
        assert wait_for_job(url, "legacy")["status"] == "ready"
        with serving_registry(tmp_path / "second", hf_endpoint=url) as other:
            plain_http.post(f"{other}/models/legacy/download", json={"hf_repo": REPO})
            assert wait_for_job(other, "legacy")["status"] == "ready"
            for endpoint in (url, other):
                api = HfApi(endpoint=endpoint, token=False)
                for repo in (OLD, REPO, REPO.upper()):
                    assert api.model_info(repo).sha == source.manifest.commit
                    folder = snapshot_download(
                        repo, endpoint=endpoint, cache_dir=tmp_path / endpoint[-5:] / repo, token=False
                    )
                    assert contents(Path(folder)) == contents(tmp_path / "repo")
        plain_http.delete(f"{url}/models/legacy")
        for repo in (OLD, REPO):
            with pytest.raises(RepositoryNotFoundError):
                HfApi(endpoint=url, token=False).model_info(repo)


@pytest.fixture
def two_commits(tmp_path: Path) -> tuple[Manifest, Manifest]:
    """Two commits of `Org/Model` in the store `tmp_path / "store"`, both beginning with 1234567; the second is main."""
    library = Library(FileStore(tmp_path / "store"), Catalogue([]))

    def publish(commit: str) -> Manifest:
        folder = small_repo(tmp_path / commit, weights=1000)
        return import_folder(library, folder, name="Model", repo="Org/Model", revision="main", commit=commit)

    return publish("1234567" + 33 * "a"), publish("1234567" + 33 * "b")


@pytest.fixture
def url(two_commits: tuple[Manifest, Manifest], tmp_path: Path) -> Iterator[str]:
    """A registry over that store."""
    with serving_registry(tmp_path / "store") as served:
        yield served


PATHS = [
    "/api/models/{id}",
    "/api/models/{id}/revision/main?blobs=true&x=%2F",
    "/api/models/{id}/tree/main/1_Pooling?recursive=true",
    "/api/models/{id}/refs",
    "/api/models/{id}/commits/main",
    "/{id}/resolve/main/1_Pooling/config.json",
    "/{id}/raw/refs%2Fheads%2Fmain/a%20b",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_another_letter_case_is_redirected(url: str, path: str, method: str) -> None:
    """With 307 and a relative URL, as at huggingface.co: huggingface_hub follows only relative ones for metadata."""
    for other in ("org/model", "ORG/MODEL", "org%2Fmodel"):
        answer = plain_http.request(method, url + path.format(id=other), follow_redirects=False)
        assert answer.status_code == 307
        assert answer.headers["location"] == path.format(id="Org/Model")


def test_clients_follow_the_redirect(url: str, two_commits: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    """Metadata, files, and the POST of paths-info; a name in another case, too."""
    api = HfApi(endpoint=url, token=False)
    for repo in ("org/model", "model"):
        assert api.model_info(repo).id == "Org/Model"
        assert [entry.path for entry in api.get_paths_info(repo, ["config.json"])] == ["config.json"]
        assert api.file_exists(repo, "config.json")
        got = hf_hub_download(repo, "config.json", endpoint=url, cache_dir=tmp_path / "cache", token=False)
        assert Path(got).parent.name == two_commits[1].commit
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/models")


def test_another_case_of_the_catalogue_starts_one_download(source: Source, tmp_path: Path) -> None:
    """With MIRROR_MISSING=yes the redirect comes first, so that the client waits under the right id."""
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text(f"small: {{kind: llm, hf_repo: {REPO}}}\n")
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url, catalogue=catalogue, mirror_missing=True) as url:
        assert HfApi(endpoint=url, token=False).model_info("Test/Small").sha == source.manifest.commit


def test_commits_may_be_abbreviated(url: str, two_commits: tuple[Manifest, Manifest]) -> None:
    """To 7 digits and more, if only one commit begins so, as in git; the Hub resolves them on its side."""
    api = HfApi(endpoint=url, token=False)
    first, second = two_commits
    for length in (8, 20, 39, 40):
        for commit in (first.commit, second.commit):
            assert api.model_info("Org/Model", revision=commit[:length]).sha == commit
            head = plain_http.head(f"{url}/Org/Model/resolve/{commit[:length]}/config.json")
            assert (head.status_code, head.headers["x-repo-commit"]) == (200, commit)
    for revision in (
        "1234567",
        "12345",
        "1234567A",
        "1234567c",
    ):  # ambiguous, too short, not hex as git writes it, none
        with pytest.raises(RevisionNotFoundError):
            api.model_info("Org/Model", revision=revision)


def test_head_is_main(url: str, two_commits: tuple[Manifest, Manifest]) -> None:
    """huggingface.js asks for HEAD where no revision is given."""
    for path in (
        "api/models/Org/Model/revision/HEAD",
        "api/models/Org/Model/tree/HEAD",
        "Org/Model/resolve/HEAD/README.md",
    ):
        assert plain_http.get(f"{url}/{path}").status_code == 200
    assert HfApi(endpoint=url, token=False).model_info("Org/Model", revision="HEAD").sha == two_commits[1].commit


def test_short_commit_of_a_running_download_is_served(source: Source, tmp_path: Path) -> None:
    """And HEAD, and the beginning of the catalogue's commit before anything is mirrored."""
    catalogue = tmp_path / "models.yaml"
    commit = source.manifest.commit
    catalogue.write_text(f"small: {{kind: llm, hf_repo: {REPO}, revision: {commit}}}\n")
    gate = source.switches.gate["/model.safetensors"] = threading.Event()
    given: dict[str, Any] = {"hf_endpoint": source.url, "catalogue": catalogue, "mirror_missing": True}
    with serving_registry(tmp_path / "mirror", **given) as url:
        for revision in (commit[:7], "HEAD"):
            answer: httpx2.Response = plain_http.head(f"{url}/{REPO}/resolve/{revision}/config.json")
            assert (answer.status_code, answer.headers.get("x-repo-commit")) == (200, commit)
        gate.set()
        assert wait_for_job(url, "small")["status"] == "ready"
