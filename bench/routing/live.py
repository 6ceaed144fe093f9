"""The straggler scenario over real sockets: the gateway and nginx in front of four servers, one of them 10 x slower.

It validates the simulation: the same arrivals and servers, real sockets, a real clock.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.harness.programs import Program, free_port
from bench.harness.report import quantile
from bench.routing.live_server import FASTER, MODEL
from bench.routing.scenarios import STRAGGLER
from bench.routing.workload import Request, arrivals

ROOT = Path(__file__).parents[2]
SPEEDS = (1.0, 1.0, 1.0, 0.1)
# Timeout of a request's first token, in seconds; it counts as this long.
GIVEN_UP_S = 5.0
# nginx's balancing methods and their names in the simulation.
NGINX = {"nginx, round robin": ("", "round robin"), "nginx, least_conn": ("least_conn;", "least request")}
_NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log; client_body_buffer_size 1m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream servers {{ {method} {servers} keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://servers; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""

Seconds = list[float]


def run_live(requests: int, rounds: int, say: Callable[[str], None]) -> dict[str, Seconds]:
    """Return times to first token through each proxy, in seconds, rounds interleaved; only ours without nginx."""
    taken: dict[str, Seconds] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-routing-")))
        ports = [free_port() for _ in SPEEDS]
        servers = [f"{port}:{speed}" for port, speed in zip(ports, SPEEDS, strict=True)]
        stack.enter_context(_program(["bench.routing.live_server", *servers], ports[-1]))
        proxies = {"gateway": _gateway(stack, ports, folder)}
        if shutil.which("nginx"):
            for name, (method, _) in NGINX.items():
                proxies[name] = _nginx(stack, ports, method, folder / name.replace(" ", ""))
        else:
            say("nginx is not installed (Debian, Ubuntu: sudo apt-get install nginx): the gateway alone")
        for round_ in range(rounds):
            for name, port in proxies.items():
                planned = arrivals(STRAGGLER.shape(requests), seed=round_ + 1)
                times = asyncio.run(_send_all(planned, port))
                say(f"  round {round_ + 1}, {name}: p99 {quantile(times, 0.99) * 1000:.0f} ms")
                taken.setdefault(name, []).extend(times)
    return taken


def simulated(name: str, requests: int, rounds: int) -> Seconds:
    """Return the simulated times; `name` is a proxy or a policy of the simulation."""
    policy = NGINX.get(name, ("", name))[1]
    times: Seconds = []
    for round_ in range(rounds):
        times += STRAGGLER.run(policy, requests, round_ + 1).ttft
    return [min(one / FASTER, GIVEN_UP_S) for one in times]


def _program(module: Sequence[str], port: int, **env: str) -> Program:
    return Program([sys.executable, "-m", *module], port=port, env=env, cwd=ROOT)


def _gateway(stack: ExitStack, ports: Sequence[int], folder: Path) -> int:
    port = free_port()
    catalogue = folder / "models.yaml"
    catalogue.write_text(f"{MODEL}: {{kind: llm, hf_repo: org/{MODEL}}}")
    services = ",".join(f"server-{number}=http://127.0.0.1:{port}" for number, port in enumerate(ports))
    env = {"PORT": str(port), "SERVICES": services, "CATALOGUE": str(catalogue), "LOG_FORMAT": "json"}
    stack.enter_context(_program(["gateway"], port, **env))
    return port


def _nginx(stack: ExitStack, ports: Sequence[int], method: str, folder: Path) -> int:
    port = free_port()
    folder.mkdir()
    servers = " ".join(f"server 127.0.0.1:{one};" for one in ports)
    (folder / "nginx.conf").write_text(_NGINX_CONF.format(folder=folder, port=port, method=method, servers=servers))
    stack.enter_context(Program(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)], port=port))
    return port


async def _send_all(planned: Sequence[Request], port: int) -> Seconds:
    """Send each request at its time; return the times to first token, in the order of arrival."""
    began = time.perf_counter()

    async def one(request: Request) -> float:
        await asyncio.sleep(max(began + request.at / FASTER - time.perf_counter(), 0))
        sent = time.perf_counter()
        first = [GIVEN_UP_S]
        try:
            async with asyncio.timeout(GIVEN_UP_S):
                await _exchange(request, port, lambda: first.__setitem__(0, time.perf_counter() - sent))
        except TimeoutError:
            pass  # counts as GIVEN_UP_S unless the first token arrived
        return first[0]

    return list(await asyncio.gather(*(one(request) for request in planned)))


async def _exchange(request: Request, port: int, on_first: Callable[[], None]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        message = {"role": "user", "content": request.prompt.decode()}
        asked = {"model": MODEL, "stream": True, "max_tokens": request.tokens, "messages": [message]}
        body = json.dumps(asked).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"port {port} responded {head.decode('latin-1')!r}")
        await reader.readuntil(b"data: ")
        on_first()
        await reader.read()
    finally:
        writer.close()
