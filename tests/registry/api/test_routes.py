"""The registry's own routes: who may change what, and what hostile requests get."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from kit.config.settings import SettingsError, load_settings
from registry.app import create_registry
from registry.settings import RegistrySettings
from tests.support import plain_http
from tests.support.hub import serving_registry

CHANGING = [("POST", "/models/x/download"), ("POST", "/models/x/verify"), ("DELETE", "/models/x")]


def client(folder: Path, *, peer: str = "127.0.0.1", **settings: object) -> httpx2.AsyncClient:
    """A client whose requests reach the application as coming from `peer`."""
    app = create_registry(RegistrySettings(store=f"file:{folder}", **settings))  # type: ignore[arg-type]  # checked by pydantic
    transport = httpx2.ASGITransport(app, client=(peer, 1234))
    return httpx2.AsyncClient(transport=transport, base_url="http://registry:8090")


async def test_health_names_the_store(tmp_path: Path) -> None:
    """What and where it is; nothing secret."""
    async with client(tmp_path) as registry:
        answer = await registry.get("/health")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["service"]) == ("healthy", "registry")
    assert answer.json()["store"] == f"file:{tmp_path}"


async def test_health_fails_with_its_store(tmp_path: Path) -> None:
    """The folder has gone: 503 and the reason."""
    async with client(tmp_path / "s") as registry:
        (tmp_path / "s").rename(tmp_path / "elsewhere")
        answer = await registry.get("/health")
    assert answer.status_code == 503
    assert "No such file" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), CHANGING)
async def test_changes_need_the_admin_token_off_loopback(tmp_path: Path, method: str, path: str) -> None:
    """From elsewhere: 403 without a token set, 401 with a wrong one, and the right one passes."""
    async with client(tmp_path, peer="10.1.2.3") as registry:
        assert (await registry.request(method, path)).status_code == 403
    async with client(tmp_path, peer="10.1.2.3", admin_token="t") as registry:
        assert (await registry.request(method, path)).status_code == 401
        passed = await registry.request(method, path, headers={"Authorization": "Bearer t"})
        assert passed.status_code in (400, 404)
        assert (await registry.get("/models")).status_code == 200


@pytest.mark.parametrize("value", [",", " "])
@pytest.mark.parametrize("admin_token", [None, "t"])
def test_keys_without_a_key_are_refused(value: str, admin_token: str | None) -> None:
    """API_KEYS with nothing in it must not open what it was to lock."""
    with pytest.raises(SettingsError, match="API_KEYS contains no key"):
        load_settings(RegistrySettings, api_keys=value, admin_token=admin_token).key_ring()


async def test_reading_needs_a_key_where_keys_are_set(tmp_path: Path) -> None:
    """Models and the Hub API ask for one, health does not; the admin token reads too."""
    async with client(tmp_path, api_keys="k1, k2", admin_token="t") as registry:
        for path in ("/models", "/api/models", "/models/x", "/a/b/resolve/main/c"):
            assert (await registry.get(path)).status_code == 401
            for key in ("k2", "t"):
                passed = await registry.get(path, headers={"Authorization": f"Bearer {key}"})
                assert passed.status_code in (200, 404)
        assert (await registry.get("/health")).status_code == 200


@pytest.mark.parametrize("name", ["..%2fx", "a%2fb", "%2e%2e", ".hidden", "a%00", "a b", "x" * 97, "a..b", "%ff"])
@pytest.mark.parametrize(("method", "ending"), [("GET", ""), ("GET", "/events"), ("POST", "/download"), ("DELETE", "")])
async def test_hostile_names_are_refused(tmp_path: Path, method: str, ending: str, name: str) -> None:
    """400, or 404 where the address is no route; and nothing is written anywhere."""
    body = {"json": {"hf_repo": "a/b"}} if method == "POST" else {}
    async with client(tmp_path / "s") as registry:
        answer = await registry.request(method, f"/models/{name}{ending}", **body)  # type: ignore[arg-type]  # json only
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["message"]
    assert not (tmp_path / "s" / "jobs").exists()


@pytest.mark.parametrize(
    "body",
    [
        *({"hf_repo": "../etc"}, {"hf_repo": "a/b/c"}, {"hf_repo": ""}, {"hf_repo": "a--b"}, {"hf_repo": 7}, [], "x"),
        *(
            {"hf_repo": "a/b", "revision": "../main"},
            {"hf_repo": "a/b", "revision": "x y"},
            {"hf_repo": "a/b", "more": 1},
        ),
        *({"hf_repo": "a/b", "allow_patterns": "x"}, {"hf_repo": "a/b", "allow_patterns": ["x"] * 101}),
        {"hf_repo": "a/b", "more": 1},
        {"hf_repo": "http://169.254.169.254/x"},
    ],
)
async def test_hostile_bodies_are_refused(tmp_path: Path, body: object) -> None:
    """A download is begun only for what can be one."""
    async with client(tmp_path / "s") as registry:
        answer = await registry.post("/models/x/download", json=body)
    assert answer.status_code == 400, answer.text
    assert not (tmp_path / "s" / "jobs").exists()


async def test_an_unknown_model_lists_those_that_are(tmp_path: Path) -> None:
    """404 model_not_found on every route of a model."""
    async with client(tmp_path) as registry:
        for method, path in (("GET", "/models/x"), ("DELETE", "/models/x"), ("POST", "/models/x/verify")):
            answer = await registry.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_foreign_web_page_is_kept_out(tmp_path: Path) -> None:
    """A rebound domain name and a foreign origin get 403, on the Hub API too."""
    with serving_registry(tmp_path / "s") as url:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            for path in ("/models", "/api/models"):
                assert plain_http.get(url + path, headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("store", "ftp://x"),
        ("store", "s3://UPPER"),
        ("hf_endpoint", "huggingface.co"),
        ("s3_endpoint", "http://u:p@h/"),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: str) -> None:
    """At start, not at the first request."""
    with pytest.raises(ValueError, match=setting):
        RegistrySettings.model_validate({setting: value})


@pytest.mark.parametrize(
    ("path", "status"),
    [("/models/x/download", 413), ("/models/x/verify", 401), ("/api/models/a/b/paths-info/main", 413)],
)
@pytest.mark.parametrize("announced", [True, False])
async def test_no_long_body_is_taken(tmp_path: Path, path: str, status: int, announced: bool) -> None:
    """No body of megabytes is taken into memory, least of all before it is known who sends it."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(64):
            taken += 1
            yield b" " * (1 << 20)

    body = b" " * (8 << 20) if announced else endless()
    async with client(tmp_path, peer="10.1.2.3", admin_token="t") as registry:
        answer = await registry.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert taken < 8
