"""Stand-in for MinIO on SeaweedFS: the same command line, credential files, ports and behaviour on SIGTERM.

`server /data --console-address :9001`: S3 on 9000, a web page on 9001.
"""

import http.server
import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

S3_PORT, CONSOLE_PORT = 9000, 9001
CONFIG = Path("/tmp/s3.json")


class Console(http.server.BaseHTTPRequestHandler):
    """The page on 9001."""

    def do_GET(self) -> None:  # the name is http.server's
        body = b"<title>MinIO Console (stand-in)</title>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def main() -> None:
    """Serve until SIGTERM."""
    user, password = (Path(os.environ[f"MINIO_ROOT_{what}_FILE"]).read_text().strip() for what in ("USER", "PASSWORD"))
    identity = {"name": "root", "credentials": [{"accessKey": user, "secretKey": password}], "actions": ["Admin"]}
    CONFIG.write_text(json.dumps({"identities": [identity]}))
    weed = subprocess.Popen(
        [
            *(str(shutil.which("weed")), "server", f"-dir={sys.argv[2]}", "-ip=127.0.0.1", "-ip.bind=0.0.0.0"),
            *("-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=0", "-volume.port=9180"),
            *("-filer", "-filer.port=9200", "-s3", f"-s3.port={S3_PORT}", f"-s3.config={CONFIG}"),
            "-s3.port.iceberg=0",
        ],
        cwd="/tmp",
    )
    # A clean stop takes many seconds, and acknowledged writes are on disk.
    signal.signal(signal.SIGTERM, lambda *_: weed.kill())
    server = socketserver.ThreadingTCPServer(("0.0.0.0", CONSOLE_PORT), Console)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    raise SystemExit(0 if weed.wait() in (0, -signal.SIGKILL) else 1)


main()
