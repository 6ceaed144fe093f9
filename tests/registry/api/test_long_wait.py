"""Hub clients wait for a model of the catalogue that is being mirrored.

Files served before the model is complete: see `test_partial_model`.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import hf_hub_download, snapshot_download

from registry.api.long_wait import HoldTimes
from tests.registry.conftest import REPO, WEIGHTS, Source
from tests.support import plain_http
from tests.support.hub import contents, serving_registry, wait_for_job, wait_until

LISTING = f"/api/models/{REPO}/revision/main"
CONFIG = "/config.json"
HEAD = f"/{REPO}/resolve/main/config.json"


@pytest.fixture
def times() -> HoldTimes:
    """The registry's, which a test may change."""
    return HoldTimes()


@pytest.fixture
def mirror(source: Source, tmp_path: Path, times: HoldTimes) -> Iterator[str]:
    """A registry over an empty folder whose catalogue has the source's model as `small`."""
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text(f"small: {{kind: llm, hf_repo: {REPO}}}\n")
    given: dict[str, Any] = {"hf_endpoint": source.url, "catalogue": catalogue, "mirror_missing": True}
    with serving_registry(tmp_path / "mirror", hold_times=times, **given) as url:
        yield url


@pytest.fixture
def gate(source: Source) -> threading.Event:
    """The event that holds back the weights at the source."""
    return source.switches.gate.setdefault(f"/{WEIGHTS}", threading.Event())


@pytest.fixture
def config_gate(source: Source) -> threading.Event:
    """The event that holds back a file that needs inspection, and so the manifest."""
    return source.switches.gate.setdefault(CONFIG, threading.Event())


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture(params=["quietly", "with blanks"])
def how(request: pytest.FixtureRequest, times: HoldTimes) -> str:
    """Before the first blank, and after it."""
    times.hold_s = 30.0 if request.param == "quietly" else 0.0
    times.blank_interval_s = 0.02
    return str(request.param)


def test_four_clients_wait_and_get_every_file(
    source: Source, mirror: str, gate: threading.Event, pool: ThreadPoolExecutor, how: str, tmp_path: Path
) -> None:
    """The source sends each file once."""
    asked = [
        pool.submit(snapshot_download, REPO, endpoint=mirror, local_dir=tmp_path / f"client-{number}")
        for number in range(4)
    ]
    wait_until(lambda: source.switches.requests(f"/{WEIGHTS}"))
    assert not any(each.done() for each in asked)
    gate.set()
    for number, each in enumerate(asked):
        each.result()
        came = contents(tmp_path / f"client-{number}")
        assert {path: came[path] for path in came if not path.startswith(".cache")} == contents(tmp_path / "repo")
    assert len(source.switches.requests(f"/{WEIGHTS}")) == 1


def test_request_for_one_file_waits_for_it(
    source: Source, mirror: str, gate: threading.Event, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """As from_pretrained requests config.json first."""
    asked = pool.submit(hf_hub_download, REPO, "config.json", endpoint=mirror, cache_dir=tmp_path / "client")
    wait_until(lambda: source.switches.requests(f"/{WEIGHTS}"))
    gate.set()
    assert Path(asked.result()).read_bytes() == contents(tmp_path / "repo")["config.json"]


def test_failed_download_ends_the_wait_with_its_reason(
    source: Source, mirror: str, config_gate: threading.Event, pool: ThreadPoolExecutor, how: str
) -> None:
    """After blanks the connection is closed, so that the response is never complete."""
    source.switches.corrupt.add(CONFIG)
    asked = pool.submit(plain_http.get, mirror + LISTING)
    wait_until(lambda: source.switches.requests(CONFIG))
    config_gate.set()
    if how == "quietly":
        assert asked.result().status_code == 503
        assert f"config.json of {REPO} arrived damaged" in asked.result().json()["error"]["message"]
    else:
        with pytest.raises(httpx2.RemoteProtocolError):
            asked.result()
    assert wait_for_job(mirror, "small")["status"] == "failed"


def test_head_gets_503_instead_of_blanks(
    source: Source, mirror: str, config_gate: threading.Event, times: HoldTimes
) -> None:
    times.hold_s = 0.0
    answer = plain_http.head(mirror + HEAD)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    config_gate.set()
    assert wait_for_job(mirror, "small")["status"] == "ready"
    assert plain_http.head(mirror + HEAD).status_code == 200
