"""Several workers on one port: shared load and state, restarts, shutdown."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import psutil
import pytest

from gateway.telemetry.merge_exposition import merge, without_gauges
from gateway.workers.shared_memory import CLOSED, SharedSlots, StateUpdate
from tests.gateway.programs import Programs, free_port
from tests.gateway.running import HANG_S

WORKERS = 2
CHAT = {"model": "qwen", "messages": [{"role": "user", "content": "Hi"}]}


class Gateway:
    """A gateway with two workers before a fake backend, as programs."""

    def __init__(self, programs: Programs, stack: contextlib.ExitStack) -> None:
        backend, self.port = free_port(), free_port()
        fake = ("tests.support.backends.openai_backend", "--port", str(backend), "--model", "qwen")
        programs.start(*fake, until="listening")
        self._stack = stack
        self.backend = self.client(backend)
        self.program: subprocess.Popen[str] = programs.start(
            "gateway",
            until="startup complete",
            PORT=str(self.port),
            WORKERS=str(WORKERS),
            SERVICES=f"llm-primary=http://127.0.0.1:{backend}",
            CATALOGUE=str(programs.folder / "models.yaml"),
            POLL_INTERVAL="0.3",
        )
        self.until(lambda: len(self.answering()) == WORKERS)

    @property
    def workers(self) -> list[int]:
        """Their process ids."""
        return [child.pid for child in psutil.Process(self.program.pid).children()]

    def client(self, port: int | None = None) -> httpx2.Client:
        """A client with a connection of its own, closed with the test."""
        address = f"http://127.0.0.1:{port or self.port}"
        return self._stack.enter_context(httpx2.Client(base_url=address, trust_env=False, timeout=HANG_S))

    def worker_of(self, client: httpx2.Client) -> int:
        """The process that has the other end of this client's connection; 0 where none has it any more."""
        answer = client.get("/health")
        port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
        for pid in self.workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(one.raddr and one.raddr.port == port for one in psutil.Process(pid).net_connections()):
                    return pid
        return 0

    def answering(self) -> set[int]:
        """Return the workers that served eight concurrent connections."""
        clients = [self.client() for _ in range(8)]
        try:
            return {self.worker_of(client) for client in clients}
        except httpx2.HTTPError:
            return set()
        finally:
            for client in clients:
                client.close()

    def until(self, condition: Callable[..., object]) -> None:
        """Wait for what happens in other processes."""
        deadline = time.monotonic() + HANG_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def service(self, client: httpx2.Client) -> dict[str, Any]:
        """The backend as the worker of this client sees it."""
        found: dict[str, Any] = client.get("/services").json()["services"]["llm-primary"]
        return found


@pytest.fixture
def gateway(programs: Programs) -> Iterator[Gateway]:
    """A gateway with two workers, both ready."""
    with contextlib.ExitStack() as stack:
        yield Gateway(programs, stack)


def _count(metrics: str, series: str) -> float:
    return sum(float(value) for value in re.findall(rf"(?m)^{re.escape(series)} (\S+)$", metrics))


def test_two_workers_act_as_one_gateway(gateway: Gateway) -> None:
    """Even connections, summed counters, shared drain, restart of a killed worker, shutdown."""
    clients = [gateway.client() for _ in range(20)]
    by_worker: dict[int, list[httpx2.Client]] = {}
    for client in clients:
        by_worker.setdefault(gateway.worker_of(client), []).append(client)
    assert min(len(some) for some in by_worker.values()) >= 8  # 60/40 at worst
    one, other = (some[0] for some in by_worker.values())

    for client in clients:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    for client in (one, other):
        gateway.until(lambda client=client: gateway.service(client)["requests"] == 20)
        gateway.until(lambda client=client: _count(client.get("/metrics").text, REQUESTS) == 20)

    gateway.backend.post("/_switches", json={"hang": True})
    with pytest.raises(httpx2.ReadTimeout):
        gateway.client().post("/v1/chat/completions", json=CHAT, timeout=0.3)
    gateway.backend.post("/_switches", json={"hang": False})
    for client in (one, other):
        gateway.until(lambda client=client: gateway.service(client)["in_flight"] == 0)

    assert one.post("/services/llm-primary/drain").json()["state"] == "draining"
    gateway.until(lambda: gateway.service(other)["state"] == "draining")
    assert other.post("/v1/chat/completions", json=CHAT).status_code == 503

    victim = gateway.worker_of(one)
    os.kill(victim, signal.SIGKILL)
    gateway.until(lambda: len(gateway.answering() - {0, victim}) == WORKERS)
    fresh = [gateway.client() for _ in range(8)]
    for client in fresh:
        assert gateway.service(client)["state"] == "draining"  # the new worker receives it
        gateway.until(lambda client=client: gateway.service(client)["requests"] == 21)
        gateway.until(lambda client=client: _count(client.get("/metrics").text, REQUESTS) >= 20)
    assert fresh[0].post("/services/llm-primary/resume").json()["state"] == "healthy"
    for client in fresh:
        gateway.until(lambda client=client: gateway.service(client)["state"] == "healthy")
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200

    workers = gateway.workers
    gateway.program.send_signal(signal.SIGTERM)
    assert gateway.program.wait(HANG_S) in (0, -signal.SIGTERM)
    assert not any(psutil.pid_exists(pid) for pid in workers)


REQUESTS = 'http_requests_total{method="POST",route="/v1/chat/completions",status="200"}'


def test_in_flight_requests_are_shared(gateway: Gateway) -> None:
    """They count in routing and /services of the other worker until they or their worker end."""
    gateway.backend.post("/_switches", json={"hang": True})

    async def hold() -> None:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
            await client.post("/v1/chat/completions", json=CHAT, timeout=HANG_S)

    async def watch(count: int, watchers: list[httpx2.AsyncClient]) -> None:
        for watcher in watchers:
            seen = -1
            while seen != count:  # it happens in other processes
                await asyncio.sleep(0.02)
                seen = (await watcher.get("/services")).json()["services"]["llm-primary"]["in_flight"]

    async def held() -> None:
        holding = [asyncio.create_task(hold()) for _ in range(6)]
        async with contextlib.AsyncExitStack() as stack:
            address = f"http://127.0.0.1:{gateway.port}"
            watchers = [
                await stack.enter_async_context(httpx2.AsyncClient(base_url=address, trust_env=False)) for _ in range(4)
            ]
            await watch(6, watchers)
            for task in holding:
                task.cancel()
            await asyncio.gather(*holding, return_exceptions=True)
            await watch(0, watchers)

    asyncio.run(asyncio.wait_for(held(), HANG_S))


def test_worker_ends_with_its_supervisor(gateway: Gateway) -> None:
    workers = gateway.workers
    gateway.program.kill()
    gateway.program.wait(HANG_S)
    gateway.until(lambda: not any(psutil.pid_exists(pid) for pid in workers))


def test_update_is_complete_or_absent() -> None:
    """Not yet written, replaced, too long, torn by a crashed writer."""
    slots = SharedSlots(2)
    assert slots.connections(1) == CLOSED
    assert slots.read(1, StateUpdate.NOW) == b""
    assert slots.write(1, StateUpdate.NOW, b"first")
    assert slots.write(1, StateUpdate.NOW, b"second, longer")
    assert slots.read(1, StateUpdate.NOW) == b"second, longer"
    assert slots.read(0, StateUpdate.NOW) == slots.read(1, StateUpdate.METRICS) == b""
    assert not slots.write(1, StateUpdate.NOW, b"x" * StateUpdate.NOW.space)
    assert slots.read(1, StateUpdate.NOW) == b""
    slots.set_connections(1, 7)
    assert (slots.connections(0), slots.connections(1)) == (CLOSED, 7)


ONE = """\
# HELP a_total Counted.
# TYPE a_total counter
a_total{x="1"} 2.0
# HELP http_requests_in_flight Now.
# TYPE http_requests_in_flight gauge
http_requests_in_flight 1.0
# HELP up Seen.
# TYPE up gauge
up 1.0
# HELP s Seconds.
# TYPE s histogram
s_bucket{le="+Inf"} 3.0
s_count 3.0
s_sum 0.5
"""


def test_expositions_are_merged() -> None:
    """Counters, histograms and some gauges are summed; other gauges are the scraped worker's."""
    two = ONE.replace('x="1"', 'x="2"').replace("up 1.0", "up 0.0") + "# TYPE b_total counter\nb_total 4.0\n"
    text = merge(ONE, [two])
    for line in ('a_total{x="1"} 2.0', 'a_total{x="2"} 2.0', "http_requests_in_flight 2.0", "up 1.0", "b_total 4.0"):
        assert line in text.splitlines()
    assert 's_bucket{le="+Inf"} 6.0' in text
    assert "s_sum 1.0" in text
    assert merge(ONE, []) == ONE
    left = without_gauges(ONE)
    assert "a_total" in left
    assert "in_flight" not in left
    assert "up" not in left.replace("Counted", "")
