"""Create the gateway's application from its settings; the data plane runs in its lifespan."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import httpx2
from fastapi import FastAPI

from gateway.api.explain import create_explain_route
from gateway.api.routes import create_routes
from gateway.backends.backend import Clock
from gateway.backends.backend_table import Backends
from gateway.backends.query_of_death import Quarantine
from gateway.bodies.memory_budget import MemoryBudget
from gateway.bodies.spool import MB, Spool
from gateway.discovery.dns_provider import DnsProvider
from gateway.discovery.file_provider import FileProvider
from gateway.discovery.target import Target
from gateway.health.poller import Poller, Timing
from gateway.relay.client_protocol import GatewayProtocol
from gateway.relay.data_plane import Limits, RelayContext
from gateway.routing import Router
from gateway.settings import GatewaySettings
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.metrics import BackendCollector, GatewayMetrics
from gateway.workers.shared_memory import SharedSlots
from gateway.workers.state_sync import StateSync
from kit.config.catalogue import Catalogue
from kit.logs import writes_json
from kit.web.app import admin_only, create_app, keys_unless_trusted

# Options of uvicorn for the application; the protocol finds the `RelayContext` in the lifespan's state.
SERVER_OPTIONS: dict[str, Any] = {"http": GatewayProtocol, "ws": "none", "proxy_headers": False, "lifespan": "on"}


def create(
    settings: GatewaySettings, slots: SharedSlots | None = None, worker: int = 0, *, timing: Timing | None = None
) -> FastAPI:
    """Create the application. Serve it with SERVER_OPTIONS.

    `slots` are shared by all workers on the port, of which this one is number `worker`; None for a single process.

    Raises SettingsError if the catalogue or the services file is invalid.
    """
    catalogue = Catalogue.load(settings.catalogue)
    backends = Backends(settings.keys_of_backends(), Clock(monotonic=time.monotonic, wall=time.time))
    router = Router(
        backends, catalogue, affinity=settings.affinity, load_bound=settings.affinity_load_bound, draw=random.random
    )
    backends.on_change(router.clear_cache)
    metrics = GatewayMetrics()
    metrics.registry.register(BackendCollector(backends, router.fallbacks_used))
    context = RelayContext(
        limits=_limits(settings),
        backends=backends,
        router=router,
        browser=settings.browser_guard(),
        keys=settings.key_ring(),
        origins=frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins),
        spool=Spool(settings.spool_dir, settings.spool_quota_mb * MB // settings.workers, settings.max_upload_mb * MB),
        memory=MemoryBudget(settings.max_buffered_mb * MB // settings.workers, settings.max_body_mb * MB),
        access_log=AccessLog(
            as_json=writes_json(settings.log_format),
            enabled=settings.log_level.upper() in ("DEBUG", "INFO"),
            is_only_writer=settings.workers == 1,
        ),
        metrics=metrics,
        quarantine=Quarantine(settings.quarantine),
    )
    backends.on_change(context.fail_over_stuck)
    # No proxy of the environment: services run in this cluster. No connection limit: a probe queued here would look
    # like a service that does not respond. No keep-alive: so would a probe on a connection that the service is closing.
    client = httpx2.AsyncClient(
        trust_env=False,
        timeout=None,  # callers set deadlines
        follow_redirects=False,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
    )
    poller = Poller(backends, catalogue, client, timing or timing_of(settings))
    providers = _providers(settings, backends)
    sync = StateSync(slots, worker, backends, context.quarantine, metrics) if slots is not None else None

    @contextlib.asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        for target in settings.listed_services:
            if not target.by_dns:
                backends.upsert(target)
        await asyncio.gather(*(provider.start(backends) for provider in providers))
        await poller.start()
        tasks = [asyncio.create_task(provider.run(backends), name="discovery") for provider in providers]
        tasks.append(asyncio.create_task(context.watch_deadlines(), name="deadlines"))
        if sync is not None:
            tasks.append(asyncio.create_task(sync.run(), name="state sync"))
        try:
            yield {"context": context}
        finally:
            await poller.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            context.close()
            await client.aclose()

    status = keys_unless_trusted(settings, context.keys, settings.status_trusted_networks)
    app = create_app(
        title="GPU cluster gateway",
        settings=settings,
        metrics=metrics,
        keys=context.keys,
        status=status,
        lifespan=running,
    )
    app.include_router(create_routes(backends, catalogue, client, admin=admin_only(settings), status=status))
    app.include_router(
        create_explain_route(router, backends, catalogue, context.keys, context.memory, settings.max_body_mb)
    )
    return app


def timing_of(settings: GatewaySettings) -> Timing:
    """Return the timing of health checks."""
    return Timing(
        interval_s=settings.poll_interval,
        timeout_s=settings.poll_timeout,
        stuck_after_s=settings.stuck_after,
        slow_start_s=settings.slow_start,
    )


def _providers(settings: GatewaySettings, backends: Backends) -> Sequence[DnsProvider | FileProvider]:
    """Create the providers of backends that may change. Raises SettingsError if the services file is invalid."""

    def by_dns(target: Target, reserved_names: Collection[str]) -> DnsProvider:
        return DnsProvider(
            target,
            reserved_names=reserved_names,
            is_responding=backends.is_responding,
            interval_s=settings.poll_interval,
            timeout_s=settings.poll_timeout,
        )

    listed = settings.listed_services
    names = {target.name for target in listed}
    providers: list[DnsProvider | FileProvider] = [by_dns(target, names) for target in listed if target.by_dns]
    if settings.services_file is not None:
        providers.append(
            FileProvider(
                settings.services_file,
                reserved_names=names,
                was_probed=backends.was_probed,
                make_dns=by_dns,
                interval_s=settings.poll_interval,
            )
        )
    return providers


def _limits(settings: GatewaySettings) -> Limits:
    return Limits(
        max_body=settings.max_body_mb * MB,
        max_upload=settings.max_upload_mb * MB,
        max_head=settings.max_head_kb * 1024,
        client_s=settings.client_timeout,
        keep_alive_s=settings.keep_alive_timeout,
        connect_s=settings.connect_timeout,
        first_byte_floor_s=min(settings.first_byte_floor, settings.first_byte_timeout),
        first_byte_s=settings.first_byte_timeout,
        stream_idle_floor_s=min(settings.stream_idle_floor, settings.stream_idle_timeout),
        stream_idle_s=settings.stream_idle_timeout,
        max_attempts=settings.max_attempts,
    )
