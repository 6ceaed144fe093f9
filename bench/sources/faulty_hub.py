"""A Hugging Face Hub with scheduled faults. File contents follow from a seed.

It implements what a mirror uses (`/revision`, ranged `/resolve`), counts the bytes sent per file, and injects one fault
at a time.
"""

import dataclasses
import hashlib
import json
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from tests.support.weights import safetensors_head

Fault = Literal["none", "cut", "short", "stall", "busy", "broken", "other_range", "corrupt_once", "corrupt"]
PASSING: tuple[Fault, ...] = ("cut", "short", "stall", "busy", "broken", "other_range", "corrupt_once")
PIECE = 64 << 10
STALLS_S = 60.0


@dataclass(frozen=True)
class HubFile:
    """One file of a repository: a block repeated up to the file's size."""

    path: str
    size: int
    block: bytes
    sha256: str

    def pieces(self, first: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes from `first` to `end` (exclusive)."""
        view, length = memoryview(self.block), len(self.block)
        while first < end:
            at = first % length
            piece = view[at : min(at + PIECE, length, at + end - first)]
            yield piece
            first += len(piece)


def hub_file(path: str, size: int, seed: str, *, block: int | None = None, digest: bool = True) -> HubFile:
    """Return a file of pseudo-random bytes; only `block` bytes (None: all) are held in memory, and repeated.

    `digest=False` omits the digest, for a file too large to be read only for that.
    """
    head = safetensors_head(size) if path.endswith(".safetensors") else b""
    content = head + random.Random(seed).randbytes(min(block or size, size) - len(head))
    file = HubFile(path, size, content, "")
    hasher = hashlib.sha256()
    for piece in file.pieces(0, size) if digest else ():
        hasher.update(piece)
    return dataclasses.replace(file, sha256=hasher.hexdigest() if digest else "0" * 64)


class FaultyHub:
    """Serves repositories on a port of 127.0.0.1. A context manager; thread-safe."""

    def __init__(self, repos: dict[str, list[HubFile]], seed: int) -> None:
        self.repos = repos
        self.sent = 0
        """Bytes of contents handed out since `plan` was last called."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._fault: Fault = "none"
        self._left = 0
        self._path = ""
        self._go_on = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """Serve the request."""
                hub.serve(self)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """Ignore errors of clients that were killed on purpose."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultyHub":
        threading.Thread(target=self._server.serve_forever, name="faulty-hub", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def plan(self, fault: Fault, *, times: int = 0, path: str = "") -> None:
        """Inject a fault into the next `times` (`corrupt`: all) requests for files whose path ends in `path`."""
        with self._lock:
            self._fault, self._left, self._path = fault, times, path
            self.sent = 0
        self._go_on.set()
        self._go_on = threading.Event()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Serve one request."""
        path = request.path.partition("?")[0]
        try:
            if found := re.fullmatch(r"/api/models/(.+)/revision/([^/]+)", path):
                self._answer_api(request, found[1])
            elif found := re.fullmatch(r"/(.+)/resolve/([0-9a-f]{40})/(.+)", path):
                files = {file.path: file for file in self.repos.get(found[1], ())}
                self._answer_file(request, files[found[3]])
            else:
                request.send_error(404)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True  # the client was killed on purpose

    def _answer_api(self, request: BaseHTTPRequestHandler, repo: str) -> None:
        files = self.repos[repo]
        commit = commit_of(files)
        siblings = [
            {
                **{"rfilename": file.path, "size": file.size, "blobId": "0" * 40},
                "lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 134},
            }
            for file in files
        ]
        body = json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _answer_file(self, request: BaseHTTPRequestHandler, file: HubFile) -> None:
        size = file.size
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        first = int(requested[1]) if requested else 0
        last = min(int(requested[2]) if requested and requested[2] else size - 1, size - 1)
        fault = self._next_fault(file)
        if fault in ("busy", "broken"):
            request.send_response(429 if fault == "busy" else 503)
            request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        shift = 1 if fault == "other_range" and last + 1 < size else 0
        first, last = first + shift, last + shift
        length = last - first + 1
        wrong_at = self._random.randrange(length) if fault in ("corrupt", "corrupt_once") else None
        stop_at = self._random.randrange(length) if fault in ("cut", "short", "stall") else length
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        # Complete as far as HTTP can detect, although short.
        request.send_header("Content-Length", str(stop_at if fault == "short" else length))
        request.end_headers()
        done = 0
        for piece in file.pieces(first, first + stop_at):
            if wrong_at is not None and done <= wrong_at < done + len(piece):
                changed = bytearray(piece)
                changed[wrong_at - done] ^= 1
                piece = memoryview(changed)
            request.wfile.write(piece)
            done += len(piece)
            with self._lock:
                self.sent += len(piece)
        if fault == "stall":
            self._go_on.wait(STALLS_S)
        request.close_connection = request.close_connection or fault in ("cut", "stall")

    def _next_fault(self, file: HubFile) -> Fault:
        with self._lock:
            if self._fault == "none" or not file.path.endswith(self._path):
                return "none"
            if self._fault != "corrupt":
                if self._left <= 0:
                    return "none"
                self._left -= 1
            return self._fault


def commit_of(files: list[HubFile]) -> str:
    """Return the commit id of a repository with these files."""
    return hashlib.sha1("".join(file.sha256 for file in files).encode(), usedforsecurity=False).hexdigest()
