"""OpenAI's error envelope, everywhere: one base class, one place that turns it into a response.

Source of the shape: https://platform.openai.com/docs/guides/error-codes and the official client's error classes.
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

MAX_SHOWN = 200  # characters of a client's value that an error repeats


class ApiError(Exception):
    """An answer that is an error. Subclasses fix status, type and code; the message says what to do next."""

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

    def encoded(self) -> bytes:
        """The envelope as UTF-8 JSON, for code that writes to a socket itself.

        A half surrogate pair, which JSON can carry in and UTF-8 cannot carry out, leaves as its escape.
        """
        return json.dumps(self.body(), ensure_ascii=False).encode(errors="backslashreplace")


class InvalidRequest(ApiError):
    """The request itself is wrong; sending it again unchanged will not help."""

    status = 400
    type = "invalid_request_error"


class InvalidApiKey(ApiError):
    """No key, or one that is not known here."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(ApiError):
    """The caller may not do this from where it stands."""

    status = 403
    type = "permission_error"


class NotFound(ApiError):
    """No such thing at this address."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(ApiError):
    """The named model is not served here; the message lists those that are."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, model: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known)) or "none yet"
        shown = repr(model if len(model) <= MAX_SHOWN else model[:MAX_SHOWN] + "…")
        super().__init__(f"The model {shown} does not exist here. Models that do: {names}.", param="model")


class PayloadTooLarge(ApiError):
    """The body is over a limit; the message names the limit and the setting that moves it."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RequestTimeout(ApiError):
    """The body came too slowly; the rest of it is not waited for."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Connection": "close"})


class _RetryLater(ApiError):
    """An error that passes by itself: carries `Retry-After` in whole seconds, from 1 to 3600."""

    def __init__(self, message: str, *, retry_after: float = 1.0, param: str | None = None) -> None:
        seconds = math.ceil(min(max(1.0, retry_after), 3600.0))
        super().__init__(message, param=param, headers={"Retry-After": str(seconds)})


class Busy(_RetryLater):
    """Too much work is waiting already."""

    status = 429
    type = "rate_limit_error"
    code = "busy"


class NoHealthyBackend(_RetryLater):
    """Every service that could answer is down; the message names them."""

    status = 503
    type = "service_unavailable"
    code = "no_healthy_backend"


class ModelLoading(_RetryLater):
    """The model is on its way; the message says how far it is."""

    status = 503
    type = "service_unavailable"
    code = "model_loading"


class BadGateway(ApiError):
    """A backend broke the connection or answered what is not HTTP."""

    status = 502
    type = "upstream_error"
    code = "bad_gateway"


class UpstreamTimeout(ApiError):
    """A backend did not answer within its deadline."""

    status = 504
    type = "upstream_error"
    code = "upstream_timeout"


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` leave in the envelope: ours, FastAPI's validation, Starlette's 404 and 405.

    Bugs are answered by `kit.web.middleware`, which also logs them under their request id.
    """
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    install_http_error_handler(app)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)


def install_http_error_handler(app: FastAPI) -> None:
    """Make the errors of Starlette itself leave in the envelope: no such route, a body that cannot be read.

    For an application that brings its own handlers for everything else.
    """
    app.add_exception_handler(HTTPException, _answer_http_exception)


def respond(error: ApiError) -> Response:
    """Turn `error` into its HTTP response."""
    return Response(error.encoded(), error.status, error.headers, media_type="application/json")


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return respond(error)


async def _answer_validation_error(_: Request, error: Exception) -> Response:
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


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # FastAPI makes a 400 of whatever happens while it reads the body.
    if isinstance(error.__cause__, ApiError):
        return respond(error.__cause__)
    if isinstance(error.__cause__, ClientDisconnect):
        return await _answer_nobody(request, error)
    status = error.status_code
    if not is_body_allowed_for_status_code(status):
        return Response(status_code=status, headers=error.headers)
    known = status in http.HTTPStatus.__members__.values()
    reason = http.HTTPStatus(status).phrase if known else f"Status {status}"
    if status == 404 and error.detail == reason:
        message = f"No route {request.method} {request.url.path[:MAX_SHOWN]}. GET /docs lists what is here."
    elif status == 405:
        message = f"{request.url.path} does not take {request.method}."
    else:
        message = str(error.detail or reason)
    kind = "invalid_request_error" if status < 500 else "internal_error"
    code = reason.lower().replace(" ", "_")
    return respond(ApiError(message, status=status, type=kind, code=code, headers=error.headers))


async def _answer_nobody(_: Request, __: Exception) -> Response:
    """The client left: no bug, and nobody reads this. 499 is nginx's code for it, which the logs and metrics show."""
    return Response(status_code=499)
