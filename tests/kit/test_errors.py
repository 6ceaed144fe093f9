"""The error envelope: status, type, code and headers of every class, and of foreign exceptions."""

import json
import math
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict

from kit import errors
from kit.errors import ApiError
from tests.kit.served import bare_app

TABLE = [
    (ApiError("m"), 500, "internal_error", None),
    (errors.InvalidRequest("m"), 400, "invalid_request_error", None),
    (errors.InvalidApiKey("m"), 401, "invalid_request_error", "invalid_api_key"),
    (errors.Forbidden("m"), 403, "permission_error", None),
    (errors.NotFound("m"), 404, "invalid_request_error", "not_found"),
    (errors.ModelNotFound("m", []), 404, "invalid_request_error", "model_not_found"),
    (errors.PayloadTooLarge("m"), 413, "invalid_request_error", "request_too_large"),
    (errors.UnsupportedEncoding("gzip"), 415, "invalid_request_error", "unsupported_content_encoding"),
    (errors.HeadTooLarge("m"), 431, "invalid_request_error", "request_head_too_large"),
    (errors.RequestTimeout("m"), 408, "invalid_request_error", "request_timeout"),
    (errors.Busy("m"), 429, "rate_limit_error", "busy"),
    (errors.BadGateway("m"), 502, "upstream_error", "bad_gateway"),
    (errors.NoHealthyBackend("m"), 503, "service_unavailable", "no_healthy_backend"),
    (errors.ModelLoading("m"), 503, "service_unavailable", "model_loading"),
    (errors.UpstreamTimeout("m"), 504, "upstream_error", "upstream_timeout"),
]


def subclasses(base: type[ApiError]) -> set[type[ApiError]]:
    return {base} | {deeper for child in base.__subclasses__() for deeper in subclasses(child)}


def test_the_table_has_every_class() -> None:
    ours = {c for c in subclasses(ApiError) if c.__module__ == "kit.errors" and not c.__name__.startswith("_")}
    assert {type(error) for error, *_ in TABLE} == ours


@pytest.mark.parametrize(("error", "status", "type_", "code"), TABLE, ids=lambda value: type(value).__name__)
def test_status_type_code_and_body(error: ApiError, status: int, type_: str, code: str | None) -> None:
    assert (error.status, error.type, error.code) == (status, type_, code)
    assert error.body() == {"error": {"message": error.message, "type": type_, "param": error.param, "code": code}}
    assert json.loads(error.encoded()) == error.body()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (402, "billing_error"),
        (403, "permission_error"), (404, "not_found_error"), (405, "invalid_request_error"), (409, "conflict_error"),
        (413, "request_too_large"), (422, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error"),
        (502, "api_error"), (503, "overloaded_error"), (504, "timeout_error"), (529, "overloaded_error"),
    ],
)  # fmt: skip
def test_types_of_anthropics_envelope(status: int, kind: str) -> None:
    """By https://docs.anthropic.com/en/api/errors; 503, which it does not list, is temporary as 529 is."""
    body = json.loads(ApiError("m", status=status).encoded("/v1/messages", "id-1"))
    assert body == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "id-1"}


@pytest.mark.parametrize("path", ["", "/", "/v1/chat/completions", "/v1/messages_of_others", "/v2/messages"])
def test_other_paths_have_openais_envelope(path: str) -> None:
    error = errors.NotFound("m")
    assert json.loads(error.encoded(path, "id-1")) == error.body()


def test_instance_overrides_class_values() -> None:
    error = ApiError("m", status=507, type="t", code="c", param="p", headers={"X-A": "b"})
    assert (error.status, error.type, error.code, error.param, error.headers) == (507, "t", "c", "p", {"X-A": "b"})
    assert ApiError.status == 500


@pytest.mark.parametrize("error_class", [errors.Busy, errors.NoHealthyBackend, errors.ModelLoading])
@pytest.mark.parametrize(
    ("seconds", "header"), [(0.0, "1"), (-5.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")]
)
def test_retry_after_is_whole_seconds(error_class: type[errors.Busy], seconds: float, header: str) -> None:
    """Rounded up, at least one (RFC 9110, 10.2.3)."""
    assert error_class("m", retry_after=seconds).headers == {"Retry-After": header}


def test_model_not_found_lists_known_models() -> None:
    error = errors.ModelNotFound("qwne", ["tinyllama", "qwen"])
    assert error.message == "The model 'qwne' does not exist. Available models: qwen, tinyllama."
    assert error.param == "model"
    assert errors.ModelNotFound("x", []).message.endswith("none yet.")


def test_model_not_found_truncates_the_name() -> None:
    assert len(errors.ModelNotFound("x" * 1_000_000, ["qwen"]).message) < 500


@pytest.mark.parametrize("text", ["grüße", "模型", "🤖", 'quote " and \\ and \n', "half \ud83d pair"])
def test_any_message_is_valid_json(text: str) -> None:
    """Messages repeat client input."""
    assert "message" in json.loads(ApiError(text).encoded())["error"]
    assert errors.respond(ApiError(text)).body == ApiError(text).encoded()


class Ask(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid")

    model: str
    n: int = 1


def app_with_errors() -> FastAPI:
    app: FastAPI = bare_app()

    @app.post("/ask")
    async def ask(ask: Ask, limit: int = 1) -> Ask:
        return ask

    @app.get("/raise/{status}")
    async def raise_http(status: int, detail: str | None = None) -> None:
        raise HTTPException(status, detail, headers={"X-Extra": "1"})

    @app.get("/busy")
    async def busy() -> None:
        raise errors.Busy("Wait.", retry_after=7)

    return app


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(app_with_errors(), base_url="http://localhost")


def envelope(response: Any, status: int) -> dict[str, Any]:
    """Check the shape; returns the inner object."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    return dict(body["error"])


def test_our_errors_keep_their_headers(client: TestClient) -> None:
    response = client.get("/busy")
    assert envelope(response, 429)["message"] == "Wait."
    assert response.headers["retry-after"] == "7"


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "param", "says"),
    [
        ('{"model": 1}', JSON, "model", "valid string"),
        ("{}", JSON, "model", "Field required"),
        ('{"model": "x", "n": "many"}', JSON, "n", "integer"),
        ('{"model": 1, "n": "many"}', JSON, "model", "(and 1 more)"),
        ('{"model": "x", "modle": "y"}', JSON, "modle", "not permitted"),
        ('{"model": "x", "\\ud800": 1}', JSON, None, "unable to parse raw data"),
        ("[]", JSON, None, "body: "),
        ("", JSON, None, "body: Field required"),
        ('{"model": ', JSON, None, "The body is not JSON: Expecting value at character 10."),
        ("hello", JSON, None, "The body is not JSON"),
        ('{"model": "x"}', {}, None, "Content-Type: application/json"),
        ('{"model": "x"}', {"Content-Type": "text/plain"}, None, "Content-Type: application/json"),
    ],
)
def test_validation_error_is_a_400_with_param(
    client: TestClient, content: str, headers: dict[str, str], param: str | None, says: str
) -> None:
    error = envelope(client.post("/ask", content=content, headers=headers), 400)
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    if param:
        assert error["param"] == param


def test_query_error_names_the_parameter(client: TestClient) -> None:
    error = envelope(client.post("/ask?limit=x", json={"model": "x"}), 400)
    assert error["param"] == "query.limit"


@pytest.mark.parametrize("path", ["/nowhere", "/v2/chat", "/" + "x" * 5000, "/%F0%9F%A4%96"])
def test_unknown_route_is_named_at_bounded_length(client: TestClient, path: str) -> None:
    error = envelope(client.get(path), 404)
    assert error["message"].startswith("No route GET /")
    assert error["code"] == "not_found"
    assert len(error["message"]) < 300


def test_wrong_method_is_a_405(client: TestClient) -> None:
    response = client.get("/ask")
    assert envelope(response, 405)["message"] == "/ask does not support GET."
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("status", "type_", "code"),
    [
        (400, "invalid_request_error", "bad_request"),
        (404, "invalid_request_error", "not_found"),
        (409, "invalid_request_error", "conflict"),
        (415, "invalid_request_error", "unsupported_media_type"),
        (499, "invalid_request_error", "status_499"),
        (500, "internal_error", "internal_server_error"),
        (501, "internal_error", "not_implemented"),
        (529, "internal_error", "status_529"),
    ],
)
def test_starlette_exceptions_keep_message_and_headers(client: TestClient, status: int, type_: str, code: str) -> None:
    """Non-standard statuses included."""
    response = client.get(f"/raise/{status}?detail=Because.")
    error = envelope(response, status)
    assert (error["type"], error["code"], error["message"]) == (type_, code, "Because.")
    assert response.headers["x-extra"] == "1"


@pytest.mark.parametrize("status", [204, 304])
def test_status_without_body_has_none(client: TestClient, status: int) -> None:
    """A body in a 304 would break the framing."""
    response = client.get(f"/raise/{status}")
    assert (response.status_code, response.content) == (status, b"")


def test_infinite_retry_after_is_capped() -> None:
    assert errors.Busy("m", retry_after=math.inf).headers == {"Retry-After": "3600"}
