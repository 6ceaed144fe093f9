"""One file of a model, as the Hub gives it: its head, or its bytes, by redirection, as the body, or as they come."""

import re
from functools import partial
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

from kit.config.hub_names import check_path
from kit.errors import ApiError
from registry.api.hub_errors import entry_not_found
from registry.download import unproved
from registry.download.arrival import Arrival
from registry.download.on_demand import OnTheWay
from registry.download.partial_model import UnderWay
from registry.download.relay import Relay, follow
from registry.models.manifest import FileEntry, Manifest
from registry.store.interface import Store


class HubFiles:
    """Answers for files from a store, or from what is on its way there."""

    def __init__(self, store: Store, *, internal_hosts: tuple[str, ...]) -> None:
        self._store = store
        self._internal_hosts = frozenset(host.lower() for host in internal_hosts)

    def answer(
        self, request: Request, manifest: Manifest, path: str, on_the_way: OnTheWay | None, *, late: bool
    ) -> Response:
        """The file at `path`; `on_the_way`: the download that brings its model, where that is not published yet.

        `late`: rather an answer that has to wait for its bytes than none. Raises BadName, StoreError, the Hub's 404,
        OnTheWay for a file of which nothing can be sent now.
        """
        file = manifest.file(check_path(path))
        if file is None:
            raise entry_not_found(manifest, path)
        headers = {
            "X-Repo-Commit": manifest.commit,
            "ETag": f'"{file.etag}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-transform",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
        }
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":
            headers["Content-Length"] = str(file.size)
            return Response(headers=headers, media_type="application/octet-stream")
        if on_the_way is not None and on_the_way.under_way is not None and not on_the_way.under_way.has(path):
            return self._coming(request, file, headers, on_the_way, on_the_way.under_way, late=late)
        return self._body(request, file, headers)

    def _coming(
        self, request: Request, file: FileEntry, headers: dict[str, str], on_the_way: OnTheWay, under_way: UnderWay,
        *, late: bool,
    ) -> Response:  # fmt: skip
        """A file that is not here yet: sent as it comes, where that can be. Raises OnTheWay, StoreError."""
        job, path = on_the_way.job, file.path
        under_way.on_wanted(path)
        start, arrival = _open_range(request, file), under_way.arrival(path)
        if job is None or start is None or not (late or _can_be_read(arrival)):
            on_the_way.is_there = lambda: (
                under_way.has(path) or (start is not None and _can_be_read(under_way.arrival(path)))
            )
            request.state.quiet = True
            raise on_the_way
        if arrival is None or not arrival.can_be_read or not arrival.may_be_gone_on_with():
            start = 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
        headers["Content-Length"] = str(file.size - start)
        body = follow(job, under_way, file, arrival, start, partial(self._store.read_blob, file.sha256))
        return Relay(body, 206 if start else 200, headers, media_type="application/octet-stream")

    def _body(self, request: Request, file: FileEntry, headers: dict[str, str]) -> Response:
        if _open_range(request, file) and unproved.is_noted(self._store, file.sha256):
            return self._from_its_beginning(file, headers)
        local = self._store.local_path(file.sha256)
        if local is not None:
            if not local.is_file():
                raise ApiError(
                    f"The bytes of {file.path} are gone from the store. Download the model again.", code="blob_missing"
                )
            return BlobResponse(local, headers=headers, media_type="application/octet-stream")
        inside = (request.url.hostname or "") in self._internal_hosts
        url = self._store.presign(file.sha256, inside=inside)
        if url is not None:
            return RedirectResponse(url, status_code=302, headers=headers)
        return self._from_its_beginning(file, headers)

    def _from_its_beginning(self, file: FileEntry, headers: dict[str, str]) -> Response:
        whole = headers | {"Content-Length": str(file.size)}
        return StreamingResponse(
            self._store.read_blob(file.sha256), headers=whole, media_type="application/octet-stream"
        )


class BlobResponse(FileResponse):
    """Starlette's answer from a file (ranges, 206, 416, If-Range), read in pieces fit for gigabytes."""

    chunk_size = 1 << 20


def _can_be_read(arrival: Arrival | None) -> bool:
    return arrival is not None and arrival.can_be_read


def _open_range(request: Request, file: FileEntry) -> int | None:
    """From where the client wants all the rest of the file; None when it wants something else."""
    asked = request.headers.get("range")
    if asked is None or request.headers.get("if-range", f'"{file.etag}"') != f'"{file.etag}"':
        return 0
    found = re.fullmatch(r"bytes=(\d{1,18})-(\d{0,18})", asked.strip())
    if found is None or int(found[1]) >= file.size or (found[2] and int(found[2]) < file.size - 1):
        return None
    return int(found[1])
