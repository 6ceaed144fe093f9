"""Proxies to compare, each in front of one backend, on the measured core, configured as in production."""

import sys
from collections.abc import Callable
from pathlib import Path

from bench.harness.load import FOLDER, MEASURED_CORE, ROOT
from bench.harness.programs import Program, free_port

Start = Callable[[int, int, Path], Program]

# Routers installed by bench/peers.sh: those written in Rust, and the usual one in Python.
ROUTERS = ("vllm-router", "sglang-router", "smg")
PEERS = (*ROUTERS, "litellm")

# The API key that clients send; only LiteLLM requires one.
KEY = "sk-bench"
# A reverse proxy in front of an API: keep-alive on both sides, a buffered access log (as ours), streams unbuffered.
_NGINX = """
worker_processes {workers};
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
events {{ worker_connections 16384; }}
http {{
  access_log {folder}/access.log combined buffer=64k flush=100ms;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  keepalive_timeout 75s;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096{reuseport};
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header X-Request-Id $request_id;
      proxy_buffering {buffering};
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


def nginx(*, streams: bool = False, workers: int = 1) -> Start:
    """Return a command that starts nginx as a reverse proxy."""

    def start(port: int, backend: int, folder: Path) -> Program:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "nginx.conf"
        config.write_text(
            _NGINX.format(
                folder=folder,
                port=port,
                backend=backend,
                workers=workers,
                buffering="off" if streams else "on",
                reuseport=" reuseport" if workers > 1 else "",
            )
        )
        command = ["nginx", "-c", str(config), "-p", str(folder)]
        return Program(command, port=port, cores=[MEASURED_CORE], log=folder / "nginx.log")

    return start


def ours(*, workers: int = 1, python: str = sys.executable) -> Start:
    """Return a command that starts the gateway with its defaults; `python` is its interpreter."""

    def start(port: int, backend: int, folder: Path) -> Program:
        folder.mkdir(parents=True, exist_ok=True)
        env = {
            "PORT": str(port),
            "WORKERS": str(workers),
            "SERVICES": f"bench=http://127.0.0.1:{backend};kind=llm;models=bench",
            "CATALOGUE": str(ROOT / "models.yaml"),
            "LOG_FORMAT": "json",
        }
        log = folder / "gateway.log"
        command = [python, "-m", "gateway"]
        return Program(command, port=port, cores=[MEASURED_CORE], env=env, cwd=ROOT, log=log)

    return start


def installed(peer: str) -> str | None:
    """Return the version of a peer that bench/peers.sh has installed, or None."""
    marker = FOLDER / peer / "installed"
    return marker.read_text().strip() if marker.exists() else None


def peer(name: str) -> Start:
    """Return a command that starts a peer in its own environment, request logs off where possible."""

    def start(port: int, backend: int, folder: Path) -> Program:
        folder.mkdir(parents=True, exist_ok=True)
        program = str(FOLDER / name / "bin" / name)
        at = f"http://127.0.0.1:{backend}"
        routed = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", at, "--policy", "round_robin"]
        command = {
            "vllm-router": [program, *routed, "--log-level", "warning"],
            "sglang-router": [program, "launch", *routed, "--log-level", "warn"],
            "smg": [program, "launch", *routed, "--log-level", "warn"],
            "litellm": [program, "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)],
        }[name]
        if name == "litellm":
            (folder / "litellm.yaml").write_text(
                "model_list:\n- model_name: bench\n  litellm_params:\n"
                f"    {{model: openai/bench, api_base: '{at}/v1', api_key: none}}\n"
            )
        # Their default metrics ports are fixed.
        if name in ROUTERS:
            command += ["--prometheus-port", str(free_port())]
        env = {"LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": KEY}
        return Program(command, port=port, cores=[MEASURED_CORE], env=env, log=folder / f"{name}.log", start_s=120)

    return start
