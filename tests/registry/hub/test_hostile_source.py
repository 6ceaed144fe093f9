"""Invalid listings: nothing is fetched, published, or written outside the store."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support import plain_http
from tests.support.hub import serving, serving_registry, wait_for_job

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GOOD = {"rfilename": "config.json", "size": 2, "blobId": "9e26dfeeb6e641a33dae4961196235bdb965b21b"}
SHA256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
PATHS = [
    *("../x", "..", ".", "", "/etc/passwd", "a/../../x", "a//b", "a/./b", "a/", "./a", "\\x", "a\\..\\b", "C:/x"),
    *("a\x00b", "a\nb", "a\rb", "\x1b[2J", "a\u202eb", "a\u2028b", "\x85", "x" * 241, "x/" * 600 + "x"),
    *("a/..", "../../names/small.json", "..\\..\\x", "\ud800"),
]  # fmt: skip
ENTRIES: list[dict[str, Any]] = [
    *({"size": -1}, {"size": 10**15}, {"size": "many"}, {"size": None}, {"size": 1.5}, {"size": True}),
    *(
        {"blobId": "../x"},
        {"blobId": ""},
        {"blobId": None},
        {"rfilename": None},
        {"rfilename": 7},
        {"rfilename": ["a"]},
    ),
    *({"lfs": {"sha256": "../../x", "size": 2}}, {"lfs": {"sha256": SHA256, "size": -1}}, {"lfs": "x"}),
    *({"lfs": {"sha256": 7}}, {"sha256": "../../x"}, {"sha256": 7}),
]
LISTINGS = [
    [GOOD, GOOD],
    [GOOD, {**GOOD, "rfilename": "config.json/x"}],
    {"error": "x"},
    ["x"],
    [None],
    [[]],
    "x",
]


CASES = [
    *([GOOD, {**GOOD, "rfilename": path}] for path in PATHS),
    *([GOOD, {**GOOD, "rfilename": "model.bin", **entry}] for entry in ENTRIES),
    *LISTINGS,
]


def hub() -> Starlette:
    """A Hub with a repository for each case, and a valid one."""

    async def info(request: Request) -> Response:
        repo = request.path_params["repo"]
        name = repo.partition("/")[2]
        siblings = [GOOD] if name == "good" else CASES[int(name)]
        return Response(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}), media_type="application/json")

    async def content(_: Request) -> Response:
        return Response(b"{}", headers={"X-Repo-Commit": COMMIT})

    return Starlette(
        routes=[
            Route("/api/models/{repo:path}/revision/{revision}", info),
            Route("/{repo:path}/resolve/{revision}/{path:path}", content),
        ]
    )


@dataclass
class Mirroring:
    """A registry that mirrors from that Hub; `home` contains only its store."""

    url: str
    home: Path

    def mirror(self, name: str) -> dict[str, object]:
        """Return the model after the download of a repository has ended."""
        plain_http.post(f"{self.url}/models/{name}/download", json={"hf_repo": f"a/{name}"})
        return wait_for_job(self.url, name)

    def written(self) -> list[str]:
        """Every file below home except records of failed jobs."""
        files = (path.relative_to(self.home) for path in self.home.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if path.parts[:2] != ("store", "jobs") and path.name != "lock")


@pytest.fixture(scope="module")
def mirroring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirroring]:
    """One registry for all cases."""
    home = tmp_path_factory.mktemp("hostile")
    with serving(hub()) as source, serving_registry(home / "store", hf_endpoint=source) as url:
        yield Mirroring(url, home)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_invalid_listing_fails_the_download(case: int, mirroring: Mirroring) -> None:
    """With a message, not as an internal error; no blob, no name, no other file is written."""
    before = mirroring.written()
    model = mirroring.mirror(str(case))
    assert model["status"] == "failed", model
    assert "Internal error" not in str(model["error"])
    assert mirroring.written() == before


def test_valid_listing_is_mirrored(mirroring: Mirroring) -> None:
    """Proves that the other cases fail because of their listings."""
    assert mirroring.mirror("good")["status"] == "ready"
    assert f"store/models/a--good/commits/{COMMIT}.json" in mirroring.written()
