"""The registry's own routes: list, show, follow, download, verify and delete models."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse, StreamingResponse

from kit.errors import ModelNotFound
from registry.download.jobs import ENDED, Job
from registry.download.mirror import DownloadRequest, Mirror
from registry.models.library import Library, RevisionUnknown
from registry.models.manifest import Name
from registry.store.interface import StoreError

Json = dict[str, Any]

EVENT_INTERVAL_S = 0.5
HEARTBEAT_S = 15.0


class ModelRoutes:
    """The routes under /models, and /health."""

    def __init__(self, library: Library, mirror: Mirror) -> None:
        self._library = library
        self._mirror = mirror
        self._started = time.monotonic()

    def read_routes(self) -> APIRouter:
        """The routes that change nothing."""
        router = APIRouter(tags=["models"])
        router.add_api_route("/models", self.list, methods=["GET"])
        router.add_api_route("/models/{name}", self.show, methods=["GET"])
        router.add_api_route("/models/{name}/events", self.events, methods=["GET"])
        return router

    def write_routes(self) -> APIRouter:
        """The routes that change models or start jobs."""
        router = APIRouter(tags=["models"])
        router.add_api_route("/models/{name}/download", self.download, methods=["POST"], status_code=202)
        router.add_api_route("/models/{name}/verify", self.verify, methods=["POST"], status_code=202)
        router.add_api_route("/models/{name}", self.delete, methods=["DELETE"])
        return router

    def health(self) -> JSONResponse:
        """200 if the store is readable, otherwise 503 with the reason."""
        store = self._library.store
        body: Json = {
            "status": "healthy",
            "service": "registry",
            "store": store.where,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
        }
        try:
            store.check()
        except StoreError as error:
            return JSONResponse(body | {"status": "failed", "detail": str(error)}, status_code=503)
        return JSONResponse(body)

    def list(self) -> Json:
        """All published models and running jobs, and the models of the catalogue that are missing."""
        pointers = {pointer.name: pointer for pointer in self._library.names()}
        jobs = {job.name: job for job in self._mirror.jobs.all()}
        names = sorted({*pointers, *(job.name for job in jobs.values() if job.status != "ready")})
        models = [self._describe(pointers.get(name), jobs.get(name)) for name in names]
        missing = [entry.name for entry in self._library.catalogue if entry.name not in names]
        return {"models": models, "not_mirrored": missing}

    def show(self, name: str) -> Json:
        """One model, by its name or by an alias of the catalogue."""
        name = self._library.canonical(name)
        pointer, job = self._library.name(name), self._mirror.jobs.get(name)
        if pointer is None and (job is None or job.status == "ready"):
            raise ModelNotFound(name, (known.name for known in self._library.names()))
        return self._describe(pointer, job)

    def download(self, name: str, request: Annotated[DownloadRequest | None, Body()] = None) -> Json:
        """Start to mirror a model from HF_ENDPOINT; repeating the request while it runs has no effect."""
        job = self._mirror.download(name, request or DownloadRequest())
        return self._describe(self._library.name(job.name), job)

    def verify(self, name: str) -> Json:
        """Start to verify every byte of a model; the result is the model's status."""
        job = self._mirror.verify(name)
        return self._describe(self._library.name(job.name), job)

    def delete(self, name: str) -> Json:
        """Cancel the model's job, delete the model, and the blobs that no other model references."""
        if not self._mirror.delete(name):
            raise ModelNotFound(name, (known.name for known in self._library.names()))
        return {"name": self._library.canonical(name), "deleted": True}

    async def events(self, name: str) -> StreamingResponse:
        """Stream the model as server-sent events, one per change, until its job has ended."""
        first = await asyncio.to_thread(self.show, name)
        return StreamingResponse(
            self._events(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def _events(self, model: Json) -> AsyncIterator[str]:
        yield _event(model)
        last_sent = time.monotonic()
        while model["status"] not in ENDED:
            await asyncio.sleep(EVENT_INTERVAL_S)
            try:
                current = await asyncio.to_thread(self.show, model["name"])
            except ModelNotFound:
                current = model | {"status": "cancelled"}
            if current != model:
                yield _event(current)
                last_sent = time.monotonic()
            elif time.monotonic() - last_sent > HEARTBEAT_S:
                yield ": still here\n\n"
                last_sent = time.monotonic()
            model = current

    def _describe(self, pointer: Name | None, job: Job | None) -> Json:
        """A model as JSON: the published model, overridden by its last job. At least one of the two exists."""
        if pointer is None:
            assert job is not None, "neither published nor being mirrored"
            return _from_job(job) | _job_state(job)
        model = self._published(pointer)
        if job is not None and job.verified_at is not None:
            return model | {"verified_at": job.verified_at}
        return model if job is None or job.status in ("ready", "cancelled") else model | _job_state(job)

    def _published(self, pointer: Name) -> Json:
        model: Json = {
            "name": pointer.name,
            "hf_repo": pointer.repo,
            "revision": pointer.revision,
            "commit": pointer.commit,
        }
        try:
            manifest = self._library.manifest(pointer.repo, pointer.commit)
        except RevisionUnknown:
            return model | {
                "status": "failed",
                "error": "Its manifest is missing. Download the model again.",
            }
        count, size = len(manifest.files), manifest.size
        return model | {
            "status": "ready",
            "progress": {
                "bytes_done": size,
                "bytes_total": size,
                "files_done": count,
                "files_total": count,
                "bytes_per_second": 0,
                "eta_seconds": 0.0,
            },
            "size_bytes": size,
            **manifest.card.model_dump(exclude_defaults=True),
            "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in manifest.files],
            "left_out": [each.model_dump() for each in manifest.left_out],
        }


def _from_job(job: Job) -> Json:
    request = job.request or {}
    return {
        "name": job.name,
        "hf_repo": request.get("repo"),
        "revision": request.get("revision"),
        "commit": None,
        "size_bytes": job.progress.as_json()["bytes_total"],
        "files": [],
        "left_out": [each.model_dump() for each in job.left_out],
    }


def _job_state(job: Job) -> Json:
    state: Json = {"status": job.status, "progress": job.progress.as_json()}
    return state | ({"error": job.error} if job.error else {})


def _event(model: Json) -> str:
    return f"event: {model['status']}\ndata: {json.dumps(model)}\n\n"
