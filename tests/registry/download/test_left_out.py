"""Names that a source may use, and files that are not mirrored: in the log, the answer, the manifest, the bundle."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from kit.hub.listing import git_blob_sha1
from registry.bundle.importing import import_bundle
from tests.registry.bundles import KEY, new_library, quiet, write
from tests.registry.conftest import Run
from tests.support import plain_http
from tests.support.hub import contents, serving, serving_registry, wait_for_job
from tests.support.weights import safetensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCREENSHOT = "assets/Screenshot 2024-05-01 at 3.05.12\u202fPM.png"
MISLEADING = "a\u202egnp.exe"
WEIGHTS = safetensors("w", 5000)


def hub(files: dict[str, bytes]) -> Starlette:
    """A Hub with one repository, for any revision."""

    def sibling(path: str, content: bytes) -> dict[str, Any]:
        sha1 = git_blob_sha1(len(content))
        sha1.update(content)
        return {"rfilename": path, "size": len(content), "blobId": sha1.hexdigest()}

    async def info(_: Request) -> Response:
        siblings = [sibling(path, content) for path, content in files.items()]
        return Response(json.dumps({"id": "o/m", "sha": COMMIT, "siblings": siblings}), media_type="application/json")

    async def content(request: Request) -> Response:
        return Response(files[request.path_params["path"]], headers={"X-Repo-Commit": COMMIT})

    routes = [
        Route("/api/models/o/m/revision/{revision:path}", info),
        Route("/o/m/resolve/{revision}/{path:path}", content),
    ]
    return Starlette(routes=routes)


def mirrored(url: str, **body: Any) -> dict[str, Any]:
    """Mirror o/m as `m` and return it when the download has ended."""
    plain_http.post(f"{url}/models/m/download", json={"hf_repo": "o/m", **body})
    return wait_for_job(url, "m")


def test_harmless_names_are_mirrored_and_downloaded(tmp_path: Path) -> None:
    """R3: the real client gets a file whose name has a space of macOS, and others that git accepts."""
    files = {"config.json": b"{}", SCREENSHOT: b"png", "3:05 \u3000.txt": b"x", "👩\u200d🔬 ": b"y", "a?b#c%20": b"z"}
    with serving(hub(files)) as source, serving_registry(tmp_path / "store", hf_endpoint=source) as url:
        assert mirrored(url, revision="feature/#12-größe")["status"] == "ready"
        folder = snapshot_download("o/m", endpoint=url, local_dir=tmp_path / "got", revision="feature/#12-größe")
        got = {path: data for path, data in contents(Path(folder)).items() if not path.startswith(".cache")}
    assert got == files


def test_names_that_patterns_leave_out_are_not_judged(tmp_path: Path) -> None:
    """R3: a refusal names the character and the way out, which works."""
    files = {"config.json": b"{}", MISLEADING: b"x"}
    with serving(hub(files)) as source, serving_registry(tmp_path / "store", hf_endpoint=source) as url:
        model = mirrored(url)
        assert model["status"] == "failed"
        assert "U+202E RIGHT-TO-LEFT OVERRIDE. Leave it out with ignore_patterns." in model["error"]
        model = mirrored(url, ignore_patterns=["a*"])
        assert (model["status"], [file["path"] for file in model["files"]]) == ("ready", ["config.json"])
        assert model["left_out"] == [{"path": r"a\u202egnp.exe", "reason": "in ignore_patterns"}]


def test_files_left_out_are_named(tmp_path: Path, registry: Run) -> None:
    """R5: in the log, the answer, `/models/m`, and the registry that imports a bundle; other weights are mirrored."""
    files = {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"never read",
        "sparse_linear.pt": b"\x80\x04}.",
        "colbert_linear.pt": b"\x80\x04}.",
    }
    left_out = [{"path": "pytorch_model.bin", "reason": "the same weights as model.safetensors"}]
    with serving(hub(files)) as source, serving_registry(tmp_path / "store", hf_endpoint=source) as url:
        with capture_logs() as logs:
            model = mirrored(url)
        assert {file["path"] for file in model["files"]} == files.keys() - {"pytorch_model.bin"}
        assert model["left_out"] == left_out == plain_http.get(f"{url}/models").json()["models"][0]["left_out"]
        (logged,) = (line["files"] for line in logs if line["event"] == "files left out")
        assert logged == "pytorch_model.bin (the same weights as model.safetensors)"
        done = registry("download", "m", "--repo", "o/m", "--url", url, store=tmp_path / "unused")
        assert f"left out: {logged}" in done.stdout
    write(new_library(tmp_path / "store"), tmp_path / "bundle")
    there = new_library(tmp_path / "there")
    import_bundle(there, tmp_path / "bundle", KEY.public, quiet)
    assert [each.model_dump() for each in there.manifest("o/m", "main").left_out] == left_out
