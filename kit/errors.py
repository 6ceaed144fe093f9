"""API errors: one base class, one function that renders the response in the envelope of the route.

OpenAI's envelope (https://platform.openai.com/docs/guides/error-codes and the official client's error classes), on the
Messages API Anthropic's (https://docs.anthropic.com/en/api/errors).
"""

import http
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.utils import is_body_allowed_for_status_code
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

MESSAGES_PATH = "/v1/messages"
# Anthropic's types of errors by status; of others, see `anthropic_type`.
ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
MAX_SHOWN = 200  # characters of a client's value that an error repeats


class ApiError(Exception):
    """An error response. Subclasses set status, type and code; the message says what to do next."""

    status = 500
    type = "internal_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status or self.status
        self.type = type or self.type
        self.code = code or self.code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The envelope `{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def anthropic_body(self, request_id: str | None = None) -> dict[str, Any]:
        """Anthropic's envelope, `{"type": "error", "error": {"type", "message"}, "request_id"}`."""
        error = {"type": anthropic_type(self.status), "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id}

    def encoded(self, path: str = "", request_id: str | None = None) -> bytes:
        """The envelope of the route `path` as UTF-8 JSON, for code that writes to a socket itself.

        A lone surrogate, valid in JSON but not in UTF-8, is written as its escape.
        """
        body = self.anthropic_body(request_id) if is_messages_api(path) else self.body()
        return json.dumps(body, ensure_ascii=False).encode(errors="backslashreplace")


def is_messages_api(path: str) -> bool:
    """Return whether `path` belongs to the Messages API, whose clients expect Anthropic's envelope."""
    return path == MESSAGES_PATH or path.startswith(MESSAGES_PATH + "/")


def anthropic_type(status: int) -> str:
    """Return Anthropic's type of an error with this status."""
    return ANTHROPIC_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


class InvalidRequest(ApiError):
    """The request is invalid; a retry without changes fails again."""

    status = 400
    type = "invalid_request_error"


class InvalidApiKey(ApiError):
    """The API key is missing or unknown."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(ApiError):
    """The caller is not permitted to do this."""

    status = 403
    type = "permission_error"


class NotFound(ApiError):
    """The resource does not exist."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(ApiError):
    """The model is not served here; the message lists those that are."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, model: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known)) or "none yet"
        shown = repr(model if len(model) <= MAX_SHOWN else model[:MAX_SHOWN] + "…")
        super().__init__(f"The model {shown} does not exist. Available models: {names}.", param="model")


class PayloadTooLarge(ApiError):
    """The body exceeds a limit; the message names the limit and its setting."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class HeadTooLarge(ApiError):
    """The head of a request exceeds its limit."""

    status = 431
    type = "invalid_request_error"
    code = "request_head_too_large"


class UnsupportedEncoding(ApiError):
    """The body is compressed (RFC 9110, 15.5.16 and 12.5.3).

    Hardly any client compresses its requests, and decompressing them would take time of the event loop.
    """

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"

    def __init__(self, encoding: str) -> None:
        message = f"Content-Encoding {encoding[:MAX_SHOWN]!r} is not supported. Send the body uncompressed."
        super().__init__(message, headers={"Accept-Encoding": "identity"})


class RequestTimeout(ApiError):
    """The request arrived too slowly."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Connection": "close"})


class _RetryLater(ApiError):
    """A transient error with `Retry-After` in whole seconds, from 1 to 3600."""

    def __init__(self, message: str, *, retry_after: float = 1.0, param: str | None = None) -> None:
        seconds = math.ceil(min(max(1.0, retry_after), 3600.0))
        super().__init__(message, param=param, headers={"Retry-After": str(seconds)})


class Busy(_RetryLater):
    """The queue is full."""

    status = 429
    type = "rate_limit_error"
    code = "busy"


class NoHealthyBackend(_RetryLater):
    """No backend of the model is healthy; the message names them."""

    status = 503
    type = "service_unavailable"
    code = "no_healthy_backend"


class ModelLoading(_RetryLater):
    """The model is being fetched or loaded; the message has the progress."""

    status = 503
    type = "service_unavailable"
    code = "model_loading"


class BadGateway(ApiError):
    """A backend closed the connection early or sent an invalid response."""

    status = 502
    type = "upstream_error"
    code = "bad_gateway"


class UpstreamTimeout(ApiError):
    """A backend did not respond within its timeout."""

    status = 504
    type = "upstream_error"
    code = "upstream_timeout"


def install_error_handlers(app: FastAPI) -> None:
    """Render every error of `app` in the envelope: ours, FastAPI's validation errors, Starlette's 404 and 405.

    `kit.web.middleware` handles unexpected exceptions and logs them with their request id.
    """
    app.add_exception_handler(ApiError, _handle_api_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    install_http_error_handler(app)
    app.add_exception_handler(ClientDisconnect, _handle_client_disconnect)


def install_http_error_handler(app: FastAPI) -> None:
    """Render Starlette's own errors in the envelope: unknown route, unreadable body.

    For applications with handlers of their own for everything else.
    """
    app.add_exception_handler(HTTPException, _handle_http_exception)


def respond(error: ApiError) -> Response:
    """Turn `error` into its HTTP response; sent, it has the envelope of the request's route."""
    return _ErrorResponse(error)


class _ErrorResponse(Response):
    """A response that selects its envelope when it is sent, by the path of the request."""

    media_type = "application/json"

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.encoded(), error.status, error.headers)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the error. Anthropic's clients read the request's id from the header `request-id`."""
        if is_messages_api(scope["path"]):
            request_id = scope.get("state", {}).get("request_id")
            self.body = self._error.encoded(scope["path"], request_id)
            self.headers["content-length"] = str(len(self.body))
            if request_id:
                self.headers["request-id"] = request_id
        await super().__call__(scope, receive, send)


async def _handle_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return respond(error)


async def _handle_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if not problems:
        return respond(InvalidRequest("The request is not valid."))
    first = problems[0]
    if first["type"] == "json_invalid":
        cause, position = first["ctx"]["error"], first["loc"][-1]
        return respond(InvalidRequest(f"The body is not JSON: {cause} at character {position}."))
    if isinstance(first.get("input"), bytes):  # FastAPI parses only what is declared as JSON
        return respond(InvalidRequest("The body is not declared as JSON. Send 'Content-Type: application/json'."))
    where = ".".join(str(part) for part in first["loc"] if part != "body")[:MAX_SHOWN] or None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return respond(InvalidRequest(f"{where or 'body'}: {first['msg']}{more}", param=where))


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # FastAPI turns every exception raised while it reads the body into a 400.
    if isinstance(error.__cause__, ApiError):
        return respond(error.__cause__)
    if isinstance(error.__cause__, ClientDisconnect):
        return await _handle_client_disconnect(request, error)
    status = error.status_code
    if not is_body_allowed_for_status_code(status):
        return Response(status_code=status, headers=error.headers)
    known = status in http.HTTPStatus.__members__.values()
    reason = http.HTTPStatus(status).phrase if known else f"Status {status}"
    if status == 404 and error.detail == reason:
        message = f"No route {request.method} {request.url.path[:MAX_SHOWN]}. GET /docs lists the routes."
    elif status == 405:
        message = f"{request.url.path} does not support {request.method}."
    else:
        message = str(error.detail or reason)
    kind = "invalid_request_error" if status < 500 else "internal_error"
    code = reason.lower().replace(" ", "_")
    headers = {**(error.headers or {})}
    if "GET" in headers.get("Allow", "") and "HEAD" not in headers["Allow"]:
        headers["Allow"] += ", HEAD"  # kit.web.middleware.HeadAsGet
    return respond(ApiError(message, status=status, type=kind, code=code, headers=headers))


async def _handle_client_disconnect(_: Request, __: Exception) -> Response:
    """Record a client disconnect as 499, nginx's code for it; the response itself is never sent."""
    return Response(status_code=499)
