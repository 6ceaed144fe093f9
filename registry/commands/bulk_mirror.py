"""A running registry is filled: several models at once are downloaded, followed, and read again byte by byte."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kit.config.catalogue import Entry
from registry.commands.registry_client import ENDED, Model, RegistryClient, RegistryClientError, RegistryGone

# How often in one model's work the registry may come back without it: it is killed again and again, and not by us.
RESTARTS = 20


class Watcher(Protocol):
    """Is told how far each model is."""

    def show(self, model: Model) -> None:
        """A model has changed."""
        ...

    def notify(self, text: str) -> None:
        """Something that concerns all of them."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What became of one model."""

    name: str
    repo: str
    commit: str | None = None
    size: int | None = None
    verified: bool = False
    error: str | None = None


async def fill(
    client: RegistryClient, entries: Iterable[Entry], watcher: Watcher, *, at_once: int | None, verify: bool
) -> list[Outcome]:
    """Bring every one of `entries` into the registry, `at_once` of them at a time (None: all).

    A model that fails does not stop the others; its outcome says why. Raises RegistryGone.
    """
    entries = list(entries)
    turns = asyncio.Semaphore(at_once or max(len(entries), 1))

    async def one(entry: Entry) -> Outcome:
        async with turns:
            return await _Filling(client, entry, watcher).run(verify=verify)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(entry)) for entry in entries]
    except ExceptionGroup as several:
        gone = several.subgroup(RegistryGone)
        if gone is None:
            raise
        raise gone.exceptions[0] from None  # all of them say the same
    return [task.result() for task in tasks]


async def follow_download(client: RegistryClient, name: str, body: dict[str, str], watcher: Watcher) -> Model:
    """Have one model downloaded; returns it at its end, whatever that is. Raises RegistryClientError."""
    for _ in range(RESTARTS):
        # After a restart it may be at it again by itself; if so, this joins it.
        model = await client.follow(await client.download(name, body), watcher.show)
        if model["status"] in ENDED:
            return model
    raise _restarted(name)


def _restarted(name: str) -> RegistryClientError:
    return RegistryClientError(
        f"The registry went away {RESTARTS} times at work on {name}. See its log, then run this again."
    )


class _Filling:
    """The work on one model."""

    def __init__(self, client: RegistryClient, entry: Entry, watcher: Watcher) -> None:
        self._client = client
        self._entry = entry
        self._watcher = watcher

    async def run(self, *, verify: bool) -> Outcome:
        entry = self._entry
        try:
            model = await self._client.model(entry.name)
            if model is None or not self._is_here(model):
                model = await self._download()
            if verify and model["status"] == "ready":
                model = await self._verify()
                model = await self._mend(model) if model["status"] == "failed" else model
        except RegistryGone:
            raise
        except RegistryClientError as error:
            return Outcome(entry.name, entry.hf_repo, error=str(error))
        self._watcher.show(model)
        if model["status"] != "ready":
            reason = model.get("error") or f"It was {model['status']}. Run this again."
            return Outcome(entry.name, entry.hf_repo, error=reason)
        return Outcome(entry.name, model["hf_repo"], model["commit"], model["size_bytes"], verified=verify)

    def _is_here(self, model: Model | None) -> bool:
        """Whether the registry has what the catalogue says. A branch that was resolved once stays at its commit."""
        return (
            model is not None
            and model["status"] in ("ready", "verifying")
            and model["hf_repo"] == self._entry.hf_repo
            and self._entry.revision in (model["revision"], model["commit"])
        )

    async def _download(self) -> Model:
        return await follow_download(self._client, self._entry.name, {}, self._watcher)

    async def _mend(self, damaged: Model) -> Model:
        """Fetch again what the verification removed from the store, and only that; then verify again."""
        model = await self._download()
        if model["status"] == "ready":
            return await self._verify()
        return model | {"error": f"{damaged.get('error')} That failed: {model.get('error')}"}

    async def _verify(self) -> Model:
        """Have every byte read again; returns the model at its end, `ready` only when that is proved."""
        for _ in range(RESTARTS):
            model = await self._client.follow(await self._client.verify(self._entry.name), self._watcher.show)
            # `ready` without `verified_at`: the registry was restarted, and the verification was lost.
            if model["status"] == "failed" or "verified_at" in model:
                return model
        raise _restarted(self._entry.name)
