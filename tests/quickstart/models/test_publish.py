"""Publication of models on a machine behind a proxy."""

import pytest
from fastapi import FastAPI

from kit.config.catalogue import Entry
from quickstart.models.publish import is_published
from quickstart.plan import Program
from quickstart.processes.readiness import wait_listening
from tests.kit.served import bare_app, serve

ENTRY = Entry(name="tiny", kind="llm", hf_repo="org/tiny", revision="packaged")


class HealthySupervisor:
    """A supervisor without failed programs."""

    def check(self, *, starting: bool = False) -> None: ...


def test_loopback_requests_bypass_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    app: FastAPI = bare_app()
    app.add_api_route("/health", lambda: {})
    app.add_api_route("/models/{name}", lambda name: {"name": name, "status": "ready", "revision": "packaged"})
    with serve(app) as (_, port):
        registry = Program("registry", "registry", port)
        wait_listening(registry, HealthySupervisor())  # type: ignore[arg-type]  # only its check is called
        assert is_published(ENTRY, registry)
        assert not is_published(ENTRY.model_copy(update={"revision": "other"}), registry)
