"""The registry's application, put together from its settings."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from kit.config.hub_names import BadName
from kit.errors import ApiError, InvalidRequest, respond
from kit.net.retry import RetryPolicy
from kit.web.app import admin_only, create_app
from kit.web.body import BodyLimit
from kit.web.guard import KeyRing
from kit.web.metrics import HttpMetrics
from registry.api.hub_api import HubApi
from registry.api.routes import ModelRoutes
from registry.download.file_download import DownloadLimits
from registry.download.jobs import Jobs
from registry.download.mirror import Mirror
from registry.download.on_demand import OnDemand
from registry.hub.client import source_client
from registry.open_store import open_library
from registry.safety.policy import Policy
from registry.settings import RegistrySettings
from registry.store.interface import StoreError

log = structlog.get_logger(__name__)

RESUME_AGAIN_S = 5.0
# A source or a store that is away for a minute ends no download.
RETRY_POLICY = RetryPolicy(max_attempts=8)
# The longest body is a list of paths of one repository.
MAX_BODY_MB = 4


def create_registry(settings: RegistrySettings) -> FastAPI:
    """Make the application. Raises SettingsError when the store or the catalogue cannot be used."""
    library = open_library(settings)
    jobs = Jobs(library.store, at_once=settings.jobs)
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    limits = DownloadLimits(
        parts=settings.parts_in_flight, bytes_per_second=settings.bandwidth_bytes_per_second(), retries=RETRY_POLICY
    )
    mirror = Mirror(
        library,
        jobs,
        lambda: source_client(
            settings.hf_endpoint, token, file_retries=RETRY_POLICY, read_timeout_s=settings.hf_stall_seconds
        ),
        limits,
        Policy(pickles=settings.pickle_files, remote_code=settings.remote_code),
        parallel=settings.files_per_job,
    )
    keys = settings.key_ring()

    @contextlib.asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        resuming = asyncio.create_task(_resume(mirror), name="resume downloads")
        try:
            yield
        finally:
            resuming.cancel()
            await asyncio.gather(resuming, return_exceptions=True)
            await asyncio.to_thread(jobs.close)
            limits.close()
            library.store.close()

    app = create_app(title="Registry", settings=settings, metrics=HttpMetrics("registry"), keys=keys, lifespan=running)
    app.add_middleware(BodyLimit, limit_mb=MAX_BODY_MB)
    app.add_exception_handler(BadName, _answer_bad_name)
    app.add_exception_handler(StoreError, _answer_store_error)
    models = ModelRoutes(library, mirror)
    readers = [_readers_only(keys)]
    app.add_api_route("/health", models.health, methods=["GET"])
    app.include_router(models.reading(), dependencies=readers)
    app.include_router(models.changing(), dependencies=[admin_only(settings)])
    on_demand = OnDemand(mirror, library.catalogue, enabled=settings.mirror_missing)
    hub_api = HubApi(library, on_demand, internal_hosts=settings.s3_internal_hosts)
    app.include_router(hub_api.router(), dependencies=readers)
    return app


async def _resume(mirror: Mirror) -> None:
    """Take up unfinished downloads as soon as the store answers: it may start after the registry."""
    told = ""
    while True:
        try:
            await asyncio.to_thread(mirror.resume)
        except StoreError as error:
            if str(error) != told:
                told = str(error)
                log.warning("store not there yet", reason=told)
        except Exception as bug:
            log.error("bug: unfinished downloads were not taken up", exc_info=bug)
            return
        else:
            return
        await asyncio.sleep(RESUME_AGAIN_S)


def _readers_only(keys: KeyRing) -> Any:
    """A dependency for routes that read: one of API_KEYS, if there are any."""

    def check(request: Request) -> None:
        refusal = keys.refusal(request.headers.get("authorization"))
        if refusal is not None:
            raise refusal

    return Depends(check)


async def _answer_bad_name(_: Request, error: Exception) -> Response:
    return respond(InvalidRequest(str(error)))


async def _answer_store_error(_: Request, error: Exception) -> Response:
    answer = ApiError(
        str(error), status=503, type="service_unavailable", code="store_failed", headers={"Retry-After": "5"}
    )
    return respond(answer)
