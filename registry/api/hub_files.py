"""One file of a model, as the Hub serves it: headers, and the bytes by redirection or as the body."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

from kit.config.hub_names import check_path
from kit.errors import ApiError, NotFound
from registry.download.on_demand import MirrorPending
from registry.models.manifest import FileEntry, Manifest, lfs_pointer
from registry.store.interface import Store

# Node reads 16 KB of headers, nginx 4 KB from a server. Clients show the message, and the body has all of it.
_MAX_MESSAGE_HEADER = 1000
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
# What Hub clients read beyond the headers that every page may read (CORS); the Hub itself exposes the same.
HUB_HEADERS = (
    "ETag", "Content-Range", "Accept-Ranges", "Link", "X-Repo-Commit", "X-Linked-Size", "X-Linked-Etag", "X-Error-Code",
    "X-Error-Message", "X-Total-Count", "X-Mirror-Progress",
)  # fmt: skip


def hub_error(hub_code: str, message: str, *, code: str = "not_found", **headers: str) -> ApiError:
    """A 404 of the Hub: clients map `hub_code` to an exception."""
    return with_message_header(NotFound(message, code=code, headers={"X-Error-Code": hub_code, **headers}))


def with_message_header(error: ApiError) -> ApiError:
    """Add X-Error-Message, which Hub clients show."""
    # A header value is Latin-1 without line breaks; the body has the full message.
    line = " ".join(error.message.encode("ascii", "replace").decode().split())
    error.headers["X-Error-Message"] = line if len(line) <= _MAX_MESSAGE_HEADER else line[:_MAX_MESSAGE_HEADER] + "..."
    return error


def entry_not_found(manifest: Manifest, path: str) -> ApiError:
    """The commit has no such file or folder."""
    message = f"{manifest.repo} at {manifest.commit} has no {path!r}. GET /api/models/{manifest.repo} lists its files."
    return hub_error("EntryNotFound", message, **{"X-Repo-Commit": manifest.commit})


class HubFiles:
    """Serves files from a store."""

    def __init__(self, store: Store, *, internal_hosts: tuple[str, ...]) -> None:
        self._store = store
        self._internal_hosts = frozenset(host.lower() for host in internal_hosts)

    def serve(
        self, request: Request, manifest: Manifest, path: str, pending: MirrorPending | None, *, raw: bool
    ) -> Response:
        """Respond with the file at `path`. `pending`: the running download, for a model that is not published yet.

        `raw`: as it is in git, so the pointer of an LFS file.

        Raises BadName, StoreError, the Hub's 404, and MirrorPending for the bytes of a file that is not verified yet.
        """
        file = manifest.file(check_path(path))
        if file is None:
            raise entry_not_found(manifest, path)
        headers = {
            "X-Repo-Commit": manifest.commit,
            "ETag": f'"{file.git_sha1 if raw else file.etag}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-transform",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
        }
        if file.lfs and not raw:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        pointer = lfs_pointer(file.sha256, file.size) if file.lfs and raw else b""
        if request.method == "HEAD":
            headers["Content-Length"] = str(len(pointer) or file.size)
            return Response(headers=headers, media_type="application/octet-stream")
        if pointer or not file.size:
            return _ranged(request, headers, len(pointer), lambda start, end: iter((pointer[start:end],)))
        incomplete = pending.partial_model if pending is not None else None
        if pending is not None and incomplete is not None and not incomplete.has_file(path):
            incomplete.prioritize(path)
            request.state.quiet = True
            raise pending.for_file(path)
        return self._body(request, file, headers)

    def _body(self, request: Request, file: FileEntry, headers: dict[str, str]) -> Response:
        local = self._store.local_path(file.sha256)
        if local is not None:
            try:
                # With it, Starlette does not look at the file again before the response begins.
                found = local.stat()
            except FileNotFoundError as error:
                raise ApiError(
                    f"The blob of {file.path} is missing in the store. Download the model again.", code="blob_missing"
                ) from error
            return BlobResponse(local, headers=headers, media_type="application/octet-stream", stat_result=found)
        if "origin" not in request.headers:
            is_internal = (request.url.hostname or "") in self._internal_hosts
            url = self._store.presign(file.sha256, inside=is_internal)
            if url is not None:
                return RedirectResponse(url, status_code=302, headers=headers)
        # A page may not read what the store sends, unless its bucket has CORS rules, or may not reach the store at all.
        return _ranged(request, headers, file.size, partial(self._store.read_blob, file.sha256))


def _ranged(
    request: Request, headers: dict[str, str], size: int, read: Callable[[int, int], Iterator[bytes]]
) -> Response:
    """Respond with `size` bytes, or with the one range of them that is requested.

    huggingface.js requests the first byte and reads the size from Content-Range, also of an empty file, where RFC 9110
    would have a 416.
    """
    start, end, status = 0, size, 200
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found and request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
        if found[1]:
            start, end = int(found[1]), min(int(found[2] or size) + 1, size)
        else:
            start = max(size - int(found[2] or 0), 0)
        if start >= end:
            headers["Content-Range"] = f"bytes */{size}"
            return Response(status_code=416 if size else 200, headers=headers)
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return StreamingResponse(read(start, end), status, headers, media_type="application/octet-stream")


class BlobResponse(FileResponse):
    """Starlette's file response (ranges, 206, 416, If-Range) with chunks sized for gigabytes."""

    chunk_size = 1 << 20
