"""The registry's own routes: permissions, and malformed or hostile requests."""

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
    """A client whose requests come from the address `peer`."""
    app = create_registry(RegistrySettings(store=f"file:{folder}", **settings))  # type: ignore[arg-type]  # checked by pydantic
    transport = httpx2.ASGITransport(app, client=(peer, 1234))
    return httpx2.AsyncClient(transport=transport, base_url="http://registry:8090")


async def test_health_shows_the_store_without_secrets(tmp_path: Path) -> None:
    async with client(tmp_path) as registry:
        answer = await registry.get("/health")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["service"]) == ("healthy", "registry")
    assert answer.json()["store"] == f"file:{tmp_path}"


async def test_health_is_503_when_the_store_is_gone(tmp_path: Path) -> None:
    async with client(tmp_path / "s") as registry:
        (tmp_path / "s").rename(tmp_path / "elsewhere")
        answer = await registry.get("/health")
    assert answer.status_code == 503
    assert "No such file" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), CHANGING)
async def test_changes_from_other_hosts_need_the_admin_token(tmp_path: Path, method: str, path: str) -> None:
    """403 if no token is set, 401 for a wrong one."""
    async with client(tmp_path, peer="10.1.2.3") as registry:
        assert (await registry.request(method, path)).status_code == 403
    async with client(tmp_path, peer="10.1.2.3", admin_token="t") as registry:
        assert (await registry.request(method, path)).status_code == 401
        passed = await registry.request(method, path, headers={"Authorization": "Bearer t"})
        assert passed.status_code in (400, 404)
        assert (await registry.get("/models")).status_code == 200


@pytest.mark.parametrize("value", [",", " "])
@pytest.mark.parametrize("admin_token", [None, "t"])
def test_api_keys_without_any_key_are_a_settings_error(value: str, admin_token: str | None) -> None:
    with pytest.raises(SettingsError, match="API_KEYS contains no key"):
        load_settings(RegistrySettings, api_keys=value, admin_token=admin_token).key_ring()


async def test_reading_needs_a_key_if_keys_are_set(tmp_path: Path) -> None:
    """/health needs none; the admin token may read, too."""
    async with client(tmp_path, api_keys="k1, k2", admin_token="t") as registry:
        for path in ("/models", "/api/models", "/models/x", "/a/b/resolve/main/c"):
            assert (await registry.get(path)).status_code == 401
            for key in ("k2", "t"):
                passed = await registry.get(path, headers={"Authorization": f"Bearer {key}"})
                assert passed.status_code in (200, 404)
        assert (await registry.get("/health")).status_code == 200


@pytest.mark.parametrize("name", ["..%2fx", "a%2fb", "%2e%2e", ".hidden", "a%00", "a b", "x" * 97, "a..b", "%ff"])
@pytest.mark.parametrize(("method", "ending"), [("GET", ""), ("GET", "/events"), ("POST", "/download"), ("DELETE", "")])
async def test_malformed_names_are_client_errors(tmp_path: Path, method: str, ending: str, name: str) -> None:
    """Nothing is written."""
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
async def test_malformed_bodies_are_client_errors(tmp_path: Path, body: object) -> None:
    async with client(tmp_path / "s") as registry:
        answer = await registry.post("/models/x/download", json=body)
    assert answer.status_code == 400, answer.text
    assert not (tmp_path / "s" / "jobs").exists()


async def test_unknown_model_is_404_and_lists_the_known_ones(tmp_path: Path) -> None:
    async with client(tmp_path) as registry:
        for method, path in (("GET", "/models/x"), ("DELETE", "/models/x"), ("POST", "/models/x/verify")):
            answer = await registry.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_foreign_host_and_origin_get_403(tmp_path: Path) -> None:
    """On the Hub API, too."""
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
def test_invalid_settings_are_refused_at_start(setting: str, value: str) -> None:
    with pytest.raises(ValueError, match=setting):
        RegistrySettings.model_validate({setting: value})


@pytest.mark.parametrize(
    ("path", "status"),
    [("/models/x/download", 413), ("/models/x/verify", 401), ("/api/models/a/b/paths-info/main", 413)],
)
@pytest.mark.parametrize("announced", [True, False])
async def test_large_body_is_rejected_unread(tmp_path: Path, path: str, status: int, announced: bool) -> None:
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


@pytest.mark.parametrize("path", ["/models/x/download", "/models/x/verify", "/api/models/a/b/paths-info/main"])
async def test_compressed_bodies_are_refused(tmp_path: Path, path: str) -> None:
    """By name, with the encoding that is accepted."""
    async with client(tmp_path) as registry:
        refused = await registry.post(path, content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert refused.status_code == 415
    assert refused.headers["accept-encoding"] == "identity"
    assert "'gzip'" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/models", "/api/models", "/models/x", "/a/b/resolve/main/c", "/docs"])
async def test_slash_at_the_end_of_a_path_is_ignored(tmp_path: Path, path: str) -> None:
    """No redirect, which behind a TLS proxy would lead to http://."""
    async with client(tmp_path) as registry:
        answers = [await registry.get(each, headers={"x-forwarded-proto": "https"}) for each in (path, path + "/")]
    assert answers[0].status_code in (200, 404)
    assert answers[1].status_code == answers[0].status_code
    assert answers[1].headers.get("x-error-code") == answers[0].headers.get("x-error-code")
    assert "location" not in answers[1].headers
