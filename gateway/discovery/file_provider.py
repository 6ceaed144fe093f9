"""Backends by a watched file: added, changed and removed while requests run.

The file is looked at again and again, by its name: so it does not matter whether it is written in place, replaced, or
reached through links that are switched over, as Kubernetes does with a ConfigMap. It is read once it has stood still
from one look to the next, so that half a file is not taken for a whole one; SIGHUP says that it is whole. A file that
cannot be used changes nothing.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from gateway.discovery.dns_provider import DnsProvider
from gateway.discovery.provider import Sink
from gateway.discovery.services_file import read_services
from gateway.discovery.target import Target
from kit.config.settings import SettingsError

log = structlog.get_logger(__name__)

# How long those that go wait for those that come to be asked how they are, in seconds.
PATIENCE_S = 3.0
# What tells one state of a file from another: device, inode, time of change in nanoseconds, size.
State = tuple[int, int, int, int]

MakeDns = Callable[[Target, Collection[str]], DnsProvider]


class FileProvider:
    """Keeps the backends of one file up to date."""

    def __init__(
        self,
        path: Path,
        *,
        taken: Collection[str],
        asked: Callable[[str], bool],
        make_dns: MakeDns,
        look_s: float,
    ) -> None:
        """The file is looked at every `look_s` seconds.

        `taken` are names that belong to other providers. `asked` tells whether the backend of a name has been asked how
        it is. `make_dns` makes the provider of one service by DNS.

        Raises SettingsError where the file cannot be used: there is no earlier state to go on with.
        """
        self._path = path
        self._taken = frozenset(taken)
        self._asked = asked
        self._make_dns = make_dns
        self._look_s = look_s
        self._told = asyncio.Event()
        self._read = self._state()
        self._targets = self._checked(read_services(path))
        self._present: dict[str, Target] = {}
        self._by_dns: dict[str, _Replicas] = {}

    async def begin(self, sink: Sink) -> None:
        """Tell of all backends of the file as it was when the gateway started."""
        await self._apply(self._targets, sink)

    async def run(self, sink: Sink) -> None:
        """Look again and again."""
        seen = self._read
        try:
            while True:
                told = await self._told_within_a_while()
                before, seen = seen, await asyncio.to_thread(self._state)
                if told or (seen != self._read and seen == before):
                    self._read = seen
                    try:
                        await self._reload(sink)
                    except Exception as error:
                        log.error("discovery failed", file=str(self._path), exc_info=error)
        finally:
            for replicas in self._by_dns.values():
                await replicas.stop()

    def reload(self) -> None:
        """Read the file now, without waiting for the next look. `run` does it."""
        self._told.set()

    async def _told_within_a_while(self) -> bool:
        """Wait for the time of the next look, or until `reload` is called; whether it was."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._look_s):
                await self._told.wait()
        told = self._told.is_set()
        self._told.clear()
        return told

    def _state(self) -> State | None:
        """How the file looks from outside, or None where it is not there."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _checked(self, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        clashing = sorted(self._taken & {target.name for target in targets})
        if clashing:
            raise SettingsError(f"{self._path}: {', '.join(clashing)}: the name is one of SERVICES already")
        return targets

    async def _reload(self, sink: Sink) -> None:
        try:
            targets = self._checked(await asyncio.to_thread(read_services, self._path))
        except SettingsError as error:
            log.error("services file not taken, keeping what was known", reason=str(error))
            return
        before = set(self._present)
        await self._apply(targets, sink)
        after = set(self._present)
        log.info("services file taken", services=sorted(after), new=sorted(after - before), gone=sorted(before - after))

    async def _apply(self, targets: tuple[Target, ...], sink: Sink) -> None:
        """Add and change first, then take away: at no moment is there less than before or after."""
        wanted = {target.name: target for target in targets}
        for name, target in wanted.items():
            if not target.by_dns:
                sink.upsert(target)
            elif name not in self._by_dns:
                self._by_dns[name] = _Replicas(sink)
                await self._by_dns[name].follow(self._make_dns(target, self._taken | wanted.keys()))
            elif _same_place(self._present[name], target):
                self._by_dns[name].retarget(target)
            else:
                await self._by_dns[name].follow(self._make_dns(target, self._taken | wanted.keys()))
        gone, new = self._present.keys() - wanted.keys(), wanted.keys() - self._present.keys()
        if gone and new:
            # Nobody is sent a request before it has been asked how it is.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    while not all(self._asked(name) for name in new):  # noqa: ASYNC110  # the poller knows no names
                        await asyncio.sleep(PATIENCE_S / 100)
        for name in gone:
            if name not in self._by_dns:
                sink.remove(name)
        for name in [name for name in self._by_dns if name not in wanted or not wanted[name].by_dns]:
            await self._by_dns.pop(name).retire(keep=wanted.keys())
        self._present = wanted


def _same_place(one: Target, other: Target) -> bool:
    return (one.host, one.port, one.tls, one.path) == (other.host, other.port, other.tls, other.path)


class _Replicas:
    """The replicas of one service by DNS, and the task that follows them. A sink that remembers their names."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._names: set[str] = set()
        self._provider: DnsProvider | None = None
        self._task: asyncio.Task[None] | None = None

    async def follow(self, provider: DnsProvider) -> None:
        """Tell of the replicas that `provider` finds, and of its changes, in the place of what was followed before."""
        await self.stop()
        before, self._names = self._names, set()
        self._provider = provider
        await provider.begin(self)
        for name in before - self._names:
            self._sink.remove(name)
        self._task = asyncio.create_task(provider.run(self), name="discovery by DNS, of the services file")

    def retarget(self, target: Target) -> None:
        """The file says something else of the service, but looks for it where it did."""
        assert self._provider is not None
        self._provider.retarget(target, self)

    async def retire(self, *, keep: Collection[str]) -> None:
        """Follow them no longer; all go but those whose names are others' now."""
        await self.stop()
        for name in self._names - set(keep):
            self._sink.remove(name)

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # What the provider calls.

    def upsert(self, target: Target) -> None:
        """Pass it on."""
        self._names.add(target.name)
        self._sink.upsert(target)

    def remove(self, name: str) -> None:
        """Pass it on."""
        self._names.discard(name)
        self._sink.remove(name)
