"""The read side of the Hugging Face Hub's HTTP API, for unchanged clients with HF_ENDPOINT set to the registry.

Paths are parsed here, not by the router: clients send a revision such as `refs/pr/1` as one segment with escaped
slashes, which routers unescape before matching.
"""

import contextlib
import json
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from kit.errors import InvalidRequest, NotFound
from registry.api import hub_json
from registry.api.hub_files import HubFiles, entry_not_found, hub_error, with_message_header
from registry.api.long_wait import HoldTimes, accepts_partial_model, hold
from registry.download.on_demand import MirrorPending, OnDemand
from registry.models.library import MAIN, Library, RepoUnknown, RevisionUnknown
from registry.models.manifest import Manifest

PAGE = 1000
_VERBS = frozenset({"revision", "tree", "paths-info", "refs", "commits"})
READ = ["GET", "HEAD"]


class HubApi:
    """Serves the Hub's API from a library."""

    def __init__(
        self, library: Library, on_demand: OnDemand, *, internal_hosts: tuple[str, ...], hold_times: HoldTimes
    ) -> None:
        self._library = library
        self._on_demand = on_demand
        self._hold_times = hold_times
        self._files = HubFiles(library.store, internal_hosts=internal_hosts)

    def router(self) -> APIRouter:
        """The routes of the API."""
        router = APIRouter(tags=["Hugging Face Hub API"])
        router.add_api_route("/api/models", self.search, methods=["GET"], operation_id="hub_search")
        router.add_api_route("/api/models/{path:path}", self.read, methods=READ, include_in_schema=False)
        router.add_api_route("/api/models/{path:path}", self.paths_info, methods=["POST"], include_in_schema=False)
        for path in ("/{name}/resolve/{path:path}", "/{org}/{name}/resolve/{path:path}"):
            router.add_api_route(path, self.resolve, methods=READ, include_in_schema=False)
        return router

    def search(self, request: Request, search: str = "", author: str = "", limit: int = PAGE) -> JSONResponse:
        """List the models, filtered by words in their name; `author` is the part before the slash."""
        words = search.lower().split()
        found = []
        for repo in self._library.repos():
            if all(word in repo.lower() for word in words) and (not author or repo.startswith(author + "/")):
                with contextlib.suppress(RevisionUnknown):  # deleted since it was listed
                    found.append(hub_json.model_summary(self._library.manifest(repo, MAIN)))
        return JSONResponse(found[: max(limit, 0)])

    async def read(self, request: Request) -> Response:
        """`GET` and `HEAD` of `/api/models/{id}` and below."""
        _, verb, _ = self._parse_api_path(request)
        return await hold(request, self._read, self._hold_times, is_json=verb in ("", "revision"))

    def _read(self, request: Request) -> JSONResponse:
        repo_id, verb, rest = self._parse_api_path(request)
        query = request.query_params
        if verb == "refs":
            return JSONResponse(hub_json.refs(self._library.refs(self._repo(repo_id))))
        manifest, _ = self._look_up(request, repo_id, rest[0] if rest else MAIN)
        if verb in ("", "revision"):
            return JSONResponse(hub_json.model_info(manifest, blobs=_flag(query.get("blobs"))))
        if verb == "tree":
            return self._tree(request, manifest, "/".join(rest[1:]))
        if verb == "commits":
            return JSONResponse(hub_json.commits(manifest))
        raise NotFound(f"{request.url.path} supports POST only.")

    def _tree(self, request: Request, manifest: Manifest, folder: str) -> JSONResponse:
        query = request.query_params
        recursive, expand = _flag(query.get("recursive")), _flag(query.get("expand"))
        entries = hub_json.tree(manifest, folder.strip("/"), recursive=recursive, expand=expand)
        if entries is None:
            raise entry_not_found(manifest, folder)
        start = _cursor(query.get("cursor"))
        size = _page_size(query.get("limit"))
        headers = {}
        if start + size < len(entries):
            more = dict(query) | {"cursor": start + size}
            headers["Link"] = f'<{request.url.replace(query=urlencode(more))}>; rel="next"'
        return JSONResponse(entries[start : start + size], headers=headers)

    async def paths_info(self, request: Request) -> JSONResponse:
        """`POST /api/models/{id}/paths-info/{rev}`, as a form (huggingface_hub) or as JSON (huggingface.js)."""
        repo_id, verb, rest = self._parse_api_path(request)
        if verb != "paths-info":
            raise NotFound("This registry implements the read side of the Hub's API only.")
        paths, expand = _parse_paths(await request.body(), request.headers.get("content-type", ""))
        manifest, _ = self._look_up(request, repo_id, rest[0] if rest else MAIN)
        return JSONResponse(hub_json.paths_info(manifest, paths, expand=expand))

    async def resolve(self, request: Request) -> Response:
        """`/{id}/resolve/{rev}/{path}`: a file, by redirection to the store or as the body."""
        return await hold(request, self._resolve, self._hold_times)

    def _resolve(self, request: Request) -> Response:
        segments = _segments(request)
        length = 1 if segments[1:2] == ["resolve"] else 2
        repo_id, rest = "/".join(segments[:length]), segments[length + 1 :]
        if segments[length : length + 1] != ["resolve"] or len(rest) < 2:
            raise NotFound("Not a path of the form /ORG/NAME/resolve/REVISION/PATH.")
        manifest, pending = self._look_up(request, repo_id, rest[0])
        return self._files.serve(request, manifest, "/".join(rest[1:]), pending)

    def _parse_api_path(self, request: Request) -> tuple[str, str, list[str]]:
        """Return id, verb and the segments after it of `/api/models/{id}[/verb/...]`."""
        segments = _segments(request)[2:]
        if not segments:
            raise NotFound("Not a path of the form /api/models/ORG/NAME.")
        length = 1 if len(segments) == 1 or segments[1] in _VERBS else 2
        verb = segments[length] if len(segments) > length else ""
        if verb and verb not in _VERBS:
            raise NotFound(f"No route {request.method} {request.url.path}. Only the Hub's read API is implemented.")
        return "/".join(segments[:length]), verb, segments[length + 1 :]

    def _repo(self, id: str) -> str:
        try:
            return self._library.find_repo(id)
        except RepoUnknown:
            known = ", ".join(self._library.repos()) or "none yet"
            message = f"The repository {id!r} is not in this registry. Known repositories: {known}."
            raise hub_error("RepoNotFound", message, code="model_not_found") from None

    def _look_up(self, request: Request, id: str, revision: str) -> tuple[Manifest, MirrorPending | None]:
        """Resolve `id` at `revision`; for a model that is not published yet, also return the running download.

        Raises the Hub's 404, MirrorPending, or another 503.
        """
        try:
            return self._find(id, revision), None
        except NotFound:
            unavailable = self._on_demand.request(id, revision)
            if unavailable is None:
                raise
            with_message_header(unavailable)
            if isinstance(unavailable, MirrorPending) and accepts_partial_model(request):
                partial = unavailable.partial_model
                if partial is not None and partial.manifest is not None:
                    return partial.manifest, unavailable
                unavailable.is_available = lambda: unavailable.partial_model is not None
            # Not logged: `hold` repeats the request, and the job logs its own progress.
            request.state.quiet = True
            raise unavailable from None

    def _find(self, id: str, revision: str) -> Manifest:
        repo = self._repo(id)
        try:
            return self._library.manifest(repo, revision)
        except RevisionUnknown:
            known = ", ".join(f"{ref} ({commit[:12]})" for ref, commit in self._library.refs(repo).items())
            message = f"{repo} has no revision {revision!r} in this registry. Known revisions: {known}."
            raise hub_error("RevisionNotFound", message) from None


def _segments(request: Request) -> list[str]:
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    segments = [unquote(segment) for segment in raw.decode("latin-1").strip("/").split("/")]
    if "" in segments:
        raise InvalidRequest("The path has an empty segment.")
    return segments


def _flag(value: str | None) -> bool:
    return value is not None and value.lower() in ("1", "true", "")


def _cursor(value: str | None) -> int:
    if value is None:
        return 0
    try:
        return max(int(value), 0)
    except ValueError as error:
        raise InvalidRequest("Invalid cursor: use the Link header of the previous page.", param="cursor") from error


def _page_size(value: str | None) -> int:
    if value is None:
        return PAGE
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= PAGE:
        raise InvalidRequest(f"Invalid limit {value!r}: must be a number from 1 to {PAGE}.", param="limit")
    return int(value)


def _parse_paths(body: bytes, content_type: str) -> tuple[list[str], bool]:
    fields: dict[str, Any]
    try:
        if "json" in content_type:
            fields = json.loads(body)
            paths = fields.get("paths", [])
            expand = bool(fields.get("expand", False))
        else:
            form = parse_qs(body.decode())
            paths, expand = form.get("paths", []), _flag(form.get("expand", ["false"])[0])
    except (ValueError, AttributeError) as error:
        raise InvalidRequest("The body must be a form or a JSON object with `paths`.") from error
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InvalidRequest("paths must be a list of strings.", param="paths")
    return paths, expand
