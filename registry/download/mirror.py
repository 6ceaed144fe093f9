"""Download, verify and delete models; used by the routes and the command line."""

from collections.abc import Callable

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kit.config.hub_names import check_name, check_repo, check_revision
from kit.errors import InvalidRequest, ModelNotFound
from kit.hub.client import HubClient
from kit.net.retry import check_stop
from registry.download.file_download import DownloadLimits
from registry.download.jobs import Job, JobConflict, Jobs, invalid_document
from registry.download.model_download import MirrorRequest, ModelDownload
from registry.models.library import MAIN, Library
from registry.models.manifest import FileEntry
from registry.safety.policy import Policy
from registry.store.interface import StoreError, read_digest

log = structlog.get_logger(__name__)


class DownloadRequest(BaseModel):
    """The body of `POST /models/{name}/download`, optional for models of the catalogue."""

    model_config = ConfigDict(extra="forbid")

    hf_repo: str | None = Field(
        default=None, description="ORG/NAME at HF_ENDPOINT; optional for models of the catalogue"
    )
    revision: str | None = Field(default=None, description="commit, branch or tag; default: the catalogue's, or main")
    allow_patterns: list[str] | None = Field(
        default=None, max_length=100, description="include only files that match one of these"
    )
    ignore_patterns: list[str] | None = Field(
        default=None, max_length=100, description="exclude files that match one of these"
    )


class Mirror:
    """Downloads, verifies and deletes models of one library."""

    def __init__(
        self,
        library: Library,
        jobs: Jobs,
        new_hub: Callable[[], HubClient],
        limits: DownloadLimits,
        policy: Policy,
        *,
        parallel: int,
    ) -> None:
        self.jobs = jobs
        self._library = library
        self._new_hub = new_hub
        self._limits = limits
        self._policy = policy
        self._parallel = parallel

    def download(self, name: str, request: DownloadRequest) -> Job:
        """Start to mirror a model, or return the running job. Raises BadName, InvalidRequest, JobConflict."""
        return self._start(self._resolve(name, request))

    def resume(self) -> None:
        """Resume interrupted downloads; one that cannot be resumed does not stop the others.

        Raises StoreError, after which it may be called again.
        """
        for name, request in self.jobs.unfinished():
            try:
                self._start(MirrorRequest.model_validate(request))
            except ValidationError:
                self.jobs.add_failed(name, request, invalid_document(name))
            except JobConflict as conflict:  # a different download was started meanwhile
                log.info("download not resumed", model=name, reason=conflict.message)

    def verify(self, name: str) -> Job:
        """Start to verify every byte of a model. Raises ModelNotFound, BadName, JobConflict."""
        name = self._library.canonical(name)
        pointer = self._library.name(name)
        if pointer is None:
            raise ModelNotFound(name, (known.name for known in self._library.names()))
        manifest = self._library.manifest(pointer.repo, pointer.commit)
        return self.jobs.start(Job(name, "verifying", None), lambda job: self._verify(job, manifest.files))

    def delete(self, name: str) -> bool:
        """Cancel the model's job and delete the model; return whether either existed. Raises BadName."""
        name = self._library.canonical(name)
        job = self.jobs.remove(name)
        deleted = self._library.delete(name, spare=self.jobs.digests)
        if job is not None:
            self._library.delete_unreachable(job.digests(), spare=self.jobs.digests)
        return deleted or job is not None

    def _resolve(self, name: str, request: DownloadRequest) -> MirrorRequest:
        name = self._library.canonical(name)
        entry = self._library.catalogue.find(name)
        repo = request.hf_repo or (entry.hf_repo if entry else None)
        if repo is None:
            names = ", ".join(sorted(known.name for known in self._library.catalogue)) or "empty"
            raise InvalidRequest(f"{name} is not in the catalogue ({names}): set hf_repo.", param="hf_repo")
        if entry is not None and repo != entry.hf_repo:
            raise InvalidRequest(
                f"{name} is {entry.hf_repo} in the catalogue. Use another name for {repo}, or change models.yaml.",
                param="hf_repo",
            )
        chosen = request.allow_patterns is not None or request.ignore_patterns is not None
        allow = request.allow_patterns if chosen or entry is None else entry.allow_patterns
        ignore = request.ignore_patterns if chosen or entry is None else entry.ignore_patterns
        return MirrorRequest(
            name=check_name(name),
            repo=check_repo(repo),
            revision=check_revision(request.revision or (entry.revision if entry else MAIN)),
            allow_patterns=None if allow is None else tuple(allow),
            ignore_patterns=None if ignore is None else tuple(ignore),
        )

    def _start(self, request: MirrorRequest) -> Job:
        job = Job(request.name, "downloading", request.model_dump(mode="json"))
        return self.jobs.start(job, lambda job: self._mirror(job, request))

    def _mirror(self, job: Job, request: MirrorRequest) -> None:
        hub = self._new_hub()
        try:
            download = ModelDownload(
                hub, self._library, request, job.progress, job.stop, self._limits, self._policy, parallel=self._parallel
            )
            job.digests = lambda: set(download.digests)
            job.partial_model = download.partial_model

            def on_selected() -> None:
                job.left_out = download.left_out
                self.jobs.store_digests(job)

            download.run(job.publishing, on_selected=on_selected)
        finally:
            hub.close()
            if job.is_cancelled:
                self._library.delete_unreachable(job.digests(), spare=self.jobs.digests)

    def _verify(self, job: Job, files: tuple[FileEntry, ...]) -> None:
        job.progress.expect(len(files), sum(file.size for file in files))
        damaged = []
        for file in files:
            if not self._is_intact(job, file):
                damaged.append(file.path)
            job.progress.file_done()
        if damaged:
            raise StoreError(
                f"Damaged or missing in the store: {', '.join(damaged)}. Damaged files were deleted; fetch them again "
                f"with POST /models/{job.name}/download."
            )

    def _is_intact(self, job: Job, file: FileEntry) -> bool:
        """Whether the blob of `file` exists and matches its digest; a damaged one is deleted.

        Raises StoreError if the store is not readable.
        """
        store = self._library.store
        if store.blob_size(file.sha256) is None:
            return False

        def on_bytes(count: int) -> None:
            check_stop(job.stop)
            job.progress.advance(count)

        if read_digest(store, file.sha256, on_bytes) == file.sha256:
            return True
        with store.exclusive():
            store.delete_blob(file.sha256)
        return False
