"""The registry's application, built from its settings."""

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
from registry.api.hub_files import HUB_HEADERS
from registry.api.long_wait import HoldTimes
from registry.api.routes import ModelRoutes
from registry.download.file_download import DownloadLimits
from registry.download.jobs import Jobs
from registry.download.mirror import Mirror
from registry.download.on_demand import OnDemand
from registry.open_store import open_library
from registry.settings import RegistrySettings
from registry.store.interface import StoreError

log = structlog.get_logger(__name__)

RESUME_RETRY_S = 5.0
# Enough to survive an outage of a minute of the source or the store.
RETRY_POLICY = RetryPolicy(max_attempts=8)
# The largest body is a list of the paths in a repository.
MAX_BODY_MB = 4


def create_registry(
    settings: RegistrySettings, *, retries: RetryPolicy = RETRY_POLICY, hold_times: HoldTimes | None = None
) -> FastAPI:
    """Build the application. Raises SettingsError if the store or the catalogue cannot be used."""
    library = open_library(settings)
    jobs = Jobs(library.store, at_once=settings.jobs)
    rate = settings.bandwidth_mb_per_second
    limits = DownloadLimits(
        parts=settings.parts_in_flight, bytes_per_second=None if rate is None else rate * 1e6, retries=retries
    )
    mirror = Mirror(
        library,
        jobs,
        lambda: settings.source_hub(file_retries=retries),
        limits,
        settings.policy(),
        parallel=settings.files_per_job,
    )
    keys = settings.key_ring()

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        resuming = asyncio.create_task(_resume(mirror), name="resume downloads")
        try:
            yield
        finally:
            resuming.cancel()
            await asyncio.gather(resuming, return_exceptions=True)
            await asyncio.to_thread(jobs.close)
            limits.close()
            library.store.close()

    app = create_app(
        title="Registry", settings=settings, metrics=HttpMetrics("registry"), keys=keys, lifespan=lifespan,
        exposed_headers=HUB_HEADERS,
    )  # fmt: skip
    app.add_middleware(BodyLimit, limit_mb=MAX_BODY_MB)
    app.add_exception_handler(BadName, _respond_bad_name)
    app.add_exception_handler(StoreError, _respond_store_error)
    models = ModelRoutes(library, mirror)
    readers = [_readers_only(keys)]
    app.add_api_route("/health", models.health, methods=["GET"])
    app.include_router(models.read_routes(), dependencies=readers)
    app.include_router(models.write_routes(), dependencies=[admin_only(settings)])
    on_demand = OnDemand(mirror, library.catalogue, enabled=settings.mirror_missing)
    hub_api = HubApi(
        library, on_demand, internal_hosts=settings.s3_internal_hosts, hold_times=hold_times or HoldTimes()
    )
    app.include_router(hub_api.router(), dependencies=readers)
    return app


async def _resume(mirror: Mirror) -> None:
    """Resume interrupted downloads once the store is up, which may start after the registry."""
    logged = ""
    while True:
        try:
            await asyncio.to_thread(mirror.resume)
            return
        except StoreError as error:
            if str(error) != logged:
                logged = str(error)
                log.warning("store is not available yet", reason=logged)
        except Exception as bug:
            log.error("bug: interrupted downloads were not resumed", exc_info=bug)
            return
        await asyncio.sleep(RESUME_RETRY_S)


def _readers_only(keys: KeyRing) -> Any:
    """A dependency that requires one of API_KEYS, if any are set."""

    def check(request: Request) -> None:
        refusal = keys.refusal(request.headers.get("authorization"))
        if refusal is not None:
            raise refusal

    return Depends(check)


async def _respond_bad_name(_: Request, error: Exception) -> Response:
    return respond(InvalidRequest(str(error)))


async def _respond_store_error(_: Request, error: Exception) -> Response:
    response = ApiError(
        str(error), status=503, type="service_unavailable", code="store_failed", headers={"Retry-After": "5"}
    )
    return respond(response)
