"""Dispatch between the common application and a stub engine: paths, keys, CORS, loading."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from kit.config.settings import load_settings
from kit.service.service import Report
from services.llm.app import LlmEngine, Service, create
from services.llm.settings import LlmSettings
from tests.kit.served import serve

WAIT_S = 10


class StubEngine:
    """Echoes path and size of a request; `gate` pauses its loading."""

    def __init__(self) -> None:
        self.name = "stub"
        self.device = "cpu"
        self.gate = threading.Event()
        self.gate.set()
        self.failure: str | None = None
        self.closed = False
        self.scopes: list[Scope] = []
        self.stack: list[str] = []
        self.service: Service | None = None

    async def open(self, service: Service, _settings: LlmSettings, _folder: Path, report: Report) -> LlmEngine:
        self.service = service
        report(0.5, "warming the stub")
        await asyncio.to_thread(self.gate.wait, WAIT_S)
        if self.failure:
            raise RuntimeError(self.failure)
        return self

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        content = json.dumps({"path": scope["path"], "bytes": len(body)}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-engine", b"stub")]})
        await send({"type": "http.response.body", "body": content})

    async def interrupt(self) -> None: ...

    async def aclose(self) -> None:
        self.closed = True


@contextlib.contextmanager
def started(folder: Path, engine: StubEngine, *, ready: bool = True, **settings: Any) -> Iterator[httpx2.Client]:
    catalogue = folder / "models.yaml"
    catalogue.write_text(json.dumps({"tiny": {"kind": "llm", "hf_repo": "org/tiny", "aliases": ["small"]}}))
    app = create(
        load_settings(LlmSettings, **{"catalogue": catalogue, "model": "tiny", "model_dir": folder, **settings}),
        engine.open,
    )
    with serve(app) as (host, port), httpx2.Client(base_url=f"http://{host}:{port}", timeout=WAIT_S) as client:
        while ready and client.get("/health").status_code != 200:
            pass
        yield client


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine()


@pytest.fixture
def client(tmp_path: Path, engine: StubEngine) -> Iterator[httpx2.Client]:
    with started(tmp_path, engine) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/anything", "/inference/v1/generate"])
def test_all_other_paths_go_to_the_engine(client: httpx2.Client, engine: StubEngine, path: str) -> None:
    response = client.post(path, content=b"x" * 100_000)
    assert response.json() == {"path": path, "bytes": 100_000}
    assert response.headers["x-engine"] == "stub"


def test_engine_requests_bypass_our_router_and_middleware(client: httpx2.Client, engine: StubEngine) -> None:
    """They would leave traces in the scope."""
    client.post("/v1/chat/completions", json={})
    traces = {"route", "endpoint", "router", "path_params", "fastapi_inner_astack", "app"}
    assert not traces & set(engine.scopes[-1])
    assert "request_id" not in engine.scopes[-1].get("state", {})


def test_own_paths_are_served_by_the_common_application(client: httpx2.Client, engine: StubEngine) -> None:
    assert client.get("/health").json()["engine"] == "stub"
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/models/org/tiny").json()["root"] == "tiny"
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert client.get("/gpu-stats").status_code == 200
    assert "http_requests_total" in client.get("/metrics").text
    assert client.get("/docs").status_code == 200
    assert engine.scopes == []


def test_keys_guard_every_path_of_the_engine(tmp_path: Path, engine: StubEngine) -> None:
    with started(tmp_path, engine, api_keys="secret") as client:
        for path in ("/v1/chat/completions", "/tokenize", "/v1/models"):
            refused = client.request("GET" if path == "/v1/models" else "POST", path)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert client.post("/tokenize", headers=headers).status_code == 200
        assert client.get("/health").status_code == 200


def test_other_origins_and_hosts_do_not_reach_the_engine(client: httpx2.Client, engine: StubEngine) -> None:
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        refused = client.post("/v1/chat/completions", headers=headers)
        assert refused.status_code == 403
        assert refused.headers["x-request-id"]
    assert engine.scopes == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/tokenize"])
def test_compressed_bodies_are_refused(client: httpx2.Client, engine: StubEngine, path: str) -> None:
    """On the engine's paths and on ours."""
    refused = client.post(path, content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert refused.status_code == 415
    assert refused.headers["accept-encoding"] == "identity"
    assert "'gzip'" in refused.json()["error"]["message"]
    assert refused.headers["x-request-id"]
    assert engine.scopes == []
    assert client.post("/tokenize", headers={"content-encoding": "identity"}).status_code == 200


def test_slash_at_the_end_of_a_path_is_ignored(client: httpx2.Client) -> None:
    """No redirect, which behind a TLS proxy would lead to http://."""
    tls = {"x-forwarded-proto": "https"}
    assert client.post("/v1/chat/completions/", headers=tls).json()["path"] == "/v1/chat/completions"
    assert client.get("/v1/models/", headers=tls).status_code == 200
    assert client.get("/v1/models/org/tiny/", headers=tls).json()["root"] == "tiny"


ORIGIN = "https://chat.example.org"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "x-a"}


@pytest.mark.parametrize("keys", [None, "secret"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/models", "/health"])
def test_preflights_of_allowed_origins_succeed_without_a_key(
    tmp_path: Path, engine: StubEngine, keys: str | None, path: str
) -> None:
    """On every path with ALLOWED_ORIGINS; a preflight cannot carry a key."""
    with started(tmp_path, engine, api_keys=keys, allowed_origins=ORIGIN) as client:
        allowed = client.options(path, headers=PREFLIGHT)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert allowed.headers["access-control-allow-headers"] == "x-a"
        refused = client.options(path, headers=PREFLIGHT | {"origin": "https://evil.example"})
        assert refused.status_code in (400, 403)
        assert "access-control-allow-origin" not in refused.headers
    assert engine.scopes == []


def test_error_responses_to_allowed_origins_have_cors_headers(tmp_path: Path, engine: StubEngine) -> None:
    with started(tmp_path, engine, api_keys="secret", allowed_origins=ORIGIN) as client:
        refused = client.post("/v1/chat/completions", headers={"origin": ORIGIN})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN


def test_requests_get_a_503_with_progress_while_loading(tmp_path: Path, engine: StubEngine) -> None:
    engine.gate.clear()
    with started(tmp_path, engine, ready=False) as client:
        loading = client.get("/health")
        while "warming" not in loading.json()["detail"]:
            loading = client.get("/health")
        assert loading.status_code == 503
        assert loading.json()["status"] == "loading"
        refused = client.post("/v1/chat/completions", json={})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_loading"
        assert int(refused.headers["retry-after"]) >= 1
        engine.gate.set()
        while client.get("/health").status_code != 200:
            pass
        assert client.post("/v1/chat/completions", json={}).status_code == 200
    assert engine.closed


def test_failed_load_is_reported_with_its_reason(tmp_path: Path, engine: StubEngine) -> None:
    engine.failure = "the weights are missing"
    with started(tmp_path, engine, ready=False) as client:
        while client.get("/health").json()["status"] != "failed":
            pass
        refused = client.post("/v1/completions", json={})
        assert refused.status_code == 503
        assert "the weights are missing" in refused.json()["error"]["message"]


def test_later_engine_failure_makes_the_service_unhealthy(client: httpx2.Client, engine: StubEngine) -> None:
    assert engine.service is not None
    engine.service.loading.fail("the engine failed")
    assert client.get("/health").json()["detail"] == "the engine failed"
    assert client.post("/v1/chat/completions", json={}).json()["error"]["code"] == "model_failed"


def test_rejected_requests_are_counted(tmp_path: Path, engine: StubEngine) -> None:
    with started(tmp_path, engine, api_keys="secret") as client:
        client.post("/v1/chat/completions")
        assert 'status="401"' in client.get("/metrics").text
