"""Mirror several models through a running registry: download, follow the progress, verify every digest."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kit.config.catalogue import Entry
from registry.commands.registry_client import Model, RegistryClient, RegistryClientError, RegistryGone
from registry.download.jobs import ENDED

# Limit on restarts of the registry during the work on one model.
MAX_RESTARTS = 20


# Shows the new state of a model.
Show = Callable[[Model], None]


@dataclass(frozen=True)
class Outcome:
    """The result for one model."""

    name: str
    repo: str
    commit: str | None = None
    size: int | None = None
    verified: bool = False
    error: str | None = None


async def mirror_models(
    client: RegistryClient,
    entries: Iterable[Entry],
    show: Show,
    *,
    max_parallel: int | None,
    verify: bool,
) -> list[Outcome]:
    """Mirror all `entries`, at most `max_parallel` at a time (None: no limit).

    A failed model does not stop the others; its outcome has the reason. Raises RegistryGone.
    """
    entries = list(entries)
    slots = asyncio.Semaphore(max_parallel or max(len(entries), 1))

    async def one(entry: Entry) -> Outcome:
        async with slots:
            return await _ModelMirror(client, entry, show).run(verify=verify)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(entry)) for entry in entries]
    except ExceptionGroup as group_error:
        gone = group_error.subgroup(RegistryGone)
        if gone is None:
            raise
        raise gone.exceptions[0] from None  # all have the same message
    return [task.result() for task in tasks]


async def follow_download(client: RegistryClient, name: str, body: dict[str, str], show: Show) -> Model:
    """Download one model; return its final state, failed or ready. Raises RegistryClientError."""
    for _ in range(MAX_RESTARTS):
        # A restarted registry may have resumed the download: then this joins it.
        model = await client.follow(await client.download(name, body), show)
        if model["status"] in ENDED:
            return model
    raise _too_many_restarts(name)


def _too_many_restarts(name: str) -> RegistryClientError:
    return RegistryClientError(
        f"The registry restarted {MAX_RESTARTS} times while mirroring {name}. See its log, then run this again."
    )


class _ModelMirror:
    def __init__(self, client: RegistryClient, entry: Entry, show: Show) -> None:
        self._client = client
        self._entry = entry
        self._show = show

    async def run(self, *, verify: bool) -> Outcome:
        entry = self._entry
        try:
            model = await self._client.model(entry.name)
            if model is None or not self._is_mirrored(model):
                model = await self._download()
            if verify and model["status"] == "ready":
                model = await self._verify()
                model = await self._repair(model) if model["status"] == "failed" else model
        except RegistryGone:
            raise
        except RegistryClientError as error:
            return Outcome(entry.name, entry.hf_repo, error=str(error))
        self._show(model)
        if model["status"] != "ready":
            reason = model.get("error") or f"The download was {model['status']}. Run this again."
            return Outcome(entry.name, entry.hf_repo, error=reason)
        return Outcome(entry.name, model["hf_repo"], model["commit"], model["size_bytes"], verified=verify)

    def _is_mirrored(self, model: Model) -> bool:
        """Return whether the registry has the catalogue's revision. A branch stays at the commit first recorded."""
        return (
            model["status"] in ("ready", "verifying")
            and model["hf_repo"] == self._entry.hf_repo
            and self._entry.revision in (model["revision"], model["commit"])
        )

    async def _download(self) -> Model:
        return await follow_download(self._client, self._entry.name, {}, self._show)

    async def _repair(self, damaged: Model) -> Model:
        """Download the files that the verification removed from the store, and verify again."""
        model = await self._download()
        if model["status"] == "ready":
            return await self._verify()
        return model | {"error": f"{damaged.get('error')} That failed: {model.get('error')}"}

    async def _verify(self) -> Model:
        for _ in range(MAX_RESTARTS):
            model = await self._client.follow(await self._client.verify(self._entry.name), self._show)
            # `ready` without `verified_at`: a restart of the registry lost the verification.
            if model["status"] == "failed" or "verified_at" in model:
                return model
        raise _too_many_restarts(self._entry.name)
