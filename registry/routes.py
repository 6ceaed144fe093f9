"""The registry's own routes: what is here, how far a download is, fetch, verify, delete."""

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from kit.errors import ModelNotFound
from registry.library import Library, RevisionUnknown
from registry.manifest import Name
from registry.store import StoreError

Json = dict[str, Any]


class ModelRoutes:
    """Answers about models by name."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._started = time.monotonic()

    def router(self) -> APIRouter:
        """The routes that read."""
        router = APIRouter(tags=["models"])
        router.add_api_route("/models", self.list, methods=["GET"])
        router.add_api_route("/models/{name}", self.show, methods=["GET"])
        return router

    def health(self) -> JSONResponse:
        """200 when the store can be read, 503 with the reason when not."""
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
        """Every model that is here or on its way, and the catalogue's models that are not."""
        models = [self.describe(name) for name in self._library.names()]
        here = {model["name"] for model in models}
        missing = [entry.name for entry in self._library.catalogue if entry.name not in here]
        return {"models": models, "not_mirrored": missing}

    def show(self, name: str) -> Json:
        """One model, by its name, an alias, or its repository's place in the catalogue."""
        pointer = self._library.name(self._library.canonical(name))
        if pointer is None:
            raise ModelNotFound(name, (known.name for known in self._library.names()))
        return self.describe(pointer)

    def describe(self, name: Name) -> Json:
        """A published model as JSON."""
        try:
            manifest = self._library.manifest(name.repo, name.commit)
        except RevisionUnknown:
            error = "Its manifest is gone from the store. Download it again."
            return {"name": name.name, "hf_repo": name.repo, "status": "failed", "error": error}
        count = len(manifest.files)
        return {
            "name": name.name,
            "hf_repo": name.repo,
            "revision": name.revision,
            "commit": name.commit,
            "status": "ready",
            "size_bytes": manifest.size,
            "progress": {
                "bytes_done": manifest.size,
                "bytes_total": manifest.size,
                "files_done": count,
                "files_total": count,
            },
            "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in manifest.files],
        }
