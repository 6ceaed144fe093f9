"""The read side of the Hugging Face Hub's HTTP API, for unchanged clients with HF_ENDPOINT set to the registry.

Paths are parsed here, not by the router: clients send a revision such as `refs/pr/1` as one segment with escaped
slashes, which routers unescape before matching.
"""

import contextlib
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic_core import from_json

from kit.errors import ApiError, InvalidRequest, NotFound
from kit.web.guard import may_be_from_foreign_page
from registry.api import hub_json
from registry.api.hub_files import HubFiles, entry_not_found, hub_error, with_message_header
from registry.api.hub_search import ModelQuery, in_order
from registry.api.long_wait import HoldTimes, accepts_partial_model, hold
from registry.download.on_demand import MirrorPending, OnDemand
from registry.models.library import MAIN, Library, RepoUnknown, RevisionUnknown
from registry.models.manifest import Manifest
from registry.models.model_metadata import MetadataReader

PAGE = 1000
_VERBS = frozenset({"revision", "tree", "paths-info", "refs", "commits"})
_FILE_VERBS = frozenset({"resolve", "raw"})
READ = ["GET", "HEAD"]


class HubApi:
    """Serves the Hub's API from a library."""

    def __init__(
        self, library: Library, on_demand: OnDemand, *, internal_hosts: tuple[str, ...], hold_times: HoldTimes
    ) -> None:
        self._library = library
        self._on_demand = on_demand
        self._hold_times = hold_times
        self._metadata = MetadataReader(library.store)
        self._files = HubFiles(library.store, internal_hosts=internal_hosts)

    def router(self) -> APIRouter:
        """The routes of the API."""
        router = APIRouter(tags=["Hugging Face Hub API"])
        router.add_api_route("/api/models", self.search, methods=["GET"], operation_id="hub_search")
        router.add_api_route("/api/models/{path:path}", self.read, methods=READ, include_in_schema=False)
        router.add_api_route("/api/models/{path:path}", self.paths_info, methods=["POST"], include_in_schema=False)
        for verb in sorted(_FILE_VERBS):
            for path in (f"/{{name}}/{verb}/{{path:path}}", f"/{{org}}/{{name}}/{verb}/{{path:path}}"):
                router.add_api_route(path, self.file, methods=READ, include_in_schema=False)
        return router

    def search(
        self, request: Request, search: str = "", author: str = "", pipeline_tag: str = "", sort: str = "",
        direction: int = -1, limit: int = PAGE,
    ) -> JSONResponse:  # fmt: skip
        """List the models, by words in their name, the part before the slash (`author`), and tags (`filter`)."""
        query = ModelQuery.parse(request.query_params.multi_items(), search, author, pipeline_tag)
        found = []
        for repo in self._library.repos():
            if query.matches_id(repo):
                with contextlib.suppress(RevisionUnknown):  # deleted since it was listed
                    manifest = self._library.manifest(repo, MAIN)
                    metadata = self._metadata.read(manifest)
                    if query.matches(metadata):
                        found.append(hub_json.model_summary(manifest, metadata, details=query.details))
        ordered = in_order(found, sort, descending=direction != 1)
        return _page(request, ordered, min(max(limit, 0), PAGE))

    async def read(self, request: Request) -> Response:
        """`GET` and `HEAD` of `/api/models/{id}` and below."""
        _, verb, _ = self._parse_api_path(request)
        return await hold(request, self._read, self._hold_times, is_json=verb in ("", "revision"))

    def _read(self, request: Request) -> JSONResponse:
        repo_id, verb, rest = self._parse_api_path(request)
        query = request.query_params
        if verb == "refs":
            return JSONResponse(hub_json.refs(self._library.refs(self._repo(request, repo_id))))
        manifest, _ = self._look_up(request, repo_id, rest[0] if rest else MAIN)
        if verb in ("", "revision"):
            return JSONResponse(
                hub_json.model_info(manifest, self._metadata.read(manifest), blobs=_flag(query.get("blobs")))
            )
        if verb == "tree":
            return self._tree(request, manifest, "/".join(rest[1:]))
        if verb == "commits":
            return JSONResponse(hub_json.commits(manifest), headers={"X-Total-Count": "1"})
        raise NotFound(f"{request.url.path} supports POST only.")

    def _tree(self, request: Request, manifest: Manifest, folder: str) -> JSONResponse:
        query = request.query_params
        recursive, expand = _flag(query.get("recursive")), _flag(query.get("expand"))
        entries = hub_json.tree(manifest, folder.strip("/"), recursive=recursive, expand=expand)
        if entries is None:
            raise entry_not_found(manifest, folder)
        return _page(request, entries, _page_size(query.get("limit")))

    async def paths_info(self, request: Request) -> JSONResponse:
        """`POST /api/models/{id}/paths-info/{rev}`, as a form (huggingface_hub) or as JSON (huggingface.js)."""
        return await run_in_threadpool(self._paths_info, request, await request.body())

    def _paths_info(self, request: Request, body: bytes) -> JSONResponse:
        repo_id, verb, rest = self._parse_api_path(request)
        if verb != "paths-info":
            raise NotFound("This registry implements the read side of the Hub's API only.")
        paths, expand = _parse_paths(body, request.headers.get("content-type", ""))
        manifest, _ = self._look_up(request, repo_id, rest[0] if rest else MAIN)
        return JSONResponse(hub_json.paths_info(manifest, paths, expand=expand))

    async def file(self, request: Request) -> Response:
        """`/{id}/resolve/{rev}/{path}`: a file, by redirection to the store or as the body.

        `/{id}/raw/{rev}/{path}` is the same, but the pointer of an LFS file.
        """
        return await hold(request, self._file, self._hold_times)

    def _file(self, request: Request) -> Response:
        segments = _segments(request)
        length = 2 if segments[2:3] and segments[2] in _FILE_VERBS else 1
        repo_id, verb, rest = "/".join(segments[:length]), segments[length : length + 1], segments[length + 1 :]
        if not _FILE_VERBS.issuperset(verb) or len(rest) < 2:
            raise NotFound("Not a path of the form /ORG/NAME/resolve/REVISION/PATH.")
        manifest, pending = self._look_up(request, repo_id, rest[0])
        return self._files.serve(request, manifest, "/".join(rest[1:]), pending, raw=verb == ["raw"])

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

    def _repo(self, request: Request, id: str) -> str:
        """The repository of `id`. Raises the Hub's 404, and its 307 for an id in another letter case or an old one."""
        try:
            return self._library.find_repo(id)
        except RepoUnknown:
            repo = self._library.moved_to(id)
            if repo is not None:
                raise _moved(request, id, repo) from None
            known = ", ".join(self._library.repos()) or "none yet"
            message = f"The repository {id!r} is not in this registry. Known repositories: {known}."
            raise hub_error("RepoNotFound", message, code="model_not_found") from None

    def _look_up(self, request: Request, id: str, revision: str) -> tuple[Manifest, MirrorPending | None]:
        """Resolve `id` at `revision`; for a model that is not published yet, also return the running download.

        Raises the Hub's 404, MirrorPending, or another 503.
        """
        try:
            return self._find(request, id, revision), None
        except NotFound:
            # A page of any origin can send a GET without the user's knowledge: it must not start a download.
            foreign = may_be_from_foreign_page(request.headers)
            unavailable = None if foreign else self._on_demand.request(id, revision)
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

    def _find(self, request: Request, id: str, revision: str) -> Manifest:
        repo = self._repo(request, id)
        try:
            return self._library.manifest(repo, revision)
        except RevisionUnknown:
            known = ", ".join(f"{ref} ({commit[:12]})" for ref, commit in self._library.refs(repo).items())
            message = f"{repo} has no revision {revision!r} in this registry. Known revisions: {known}."
            raise hub_error("RevisionNotFound", message) from None


def _raw_segments(request: Request) -> list[str]:
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    segments = raw.decode("latin-1").strip("/").split("/")
    if "" in segments:
        raise InvalidRequest("The path has an empty segment.")
    return segments


def _segments(request: Request) -> list[str]:
    return [unquote(segment) for segment in _raw_segments(request)]


def _moved(request: Request, id: str, repo: str) -> ApiError:
    """The redirect of the request to `repo`, relative, as Hub clients follow only such ones when they ask for a file's
    metadata.
    """
    segments = _raw_segments(request)
    start = 2 if segments[:2] == ["api", "models"] else 0
    end = next(end for end in (start + 1, start + 2) if unquote("/".join(segments[start:end])) == id)
    query = f"?{request.url.query}" if request.url.query else ""
    location = "/" + "/".join([*segments[:start], quote(repo), *segments[end:]]) + query
    return ApiError(
        f"The repository {id!r} is {repo} here.", status=307, type="redirect", code="moved",
        headers={"Location": location},
    )  # fmt: skip


def _page(request: Request, entries: list[Any], size: int) -> JSONResponse:
    """One page of `entries`, with the next one's URL in `Link`."""
    query = request.query_params
    start = _cursor(query.get("cursor"))
    headers = {}
    if 0 < size < len(entries) - start:
        kept = [(name, value) for name, value in query.multi_items() if name != "cursor"]
        more = urlencode([*kept, ("cursor", start + size)])
        headers["Link"] = f'<{request.url.replace(query=more)}>; rel="next"'
    return JSONResponse(entries[start : start + size], headers=headers)


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
            fields = from_json(body)
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
