"""Discovery from a watched file: backends are added, changed and removed while requests run.

The file is polled by name, so that it may be written in place, replaced, or switched by links as Kubernetes does with a
ConfigMap. It is read once it has not changed between two polls, so that a half-written file is not used, or at SIGHUP.
An invalid file changes nothing.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import structlog

from gateway.discovery.dns_provider import DnsProvider
from gateway.discovery.services_file import read_services
from gateway.discovery.target import Sink, Target
from kit.config.settings import SettingsError

log = structlog.get_logger(__name__)

# How long removed backends are kept until new ones have been probed, in seconds.
PROBE_WAIT_S = 3.0
# The identity of a file's content: device, inode, time of change in nanoseconds, size.
State = tuple[int, int, int, int]

MakeDns = Callable[[Target, Collection[str]], DnsProvider]


class FileProvider:
    """Keeps the backends of one file up to date."""

    def __init__(
        self,
        path: Path,
        *,
        reserved_names: Collection[str],
        was_probed: Callable[[str], bool],
        make_dns: MakeDns,
        interval_s: float,
    ) -> None:
        """Read the file, which is then polled every `interval_s` seconds. Raises SettingsError if it is invalid.

        `reserved_names` belong to other providers. `was_probed` returns whether the backend of a name has been probed.
        `make_dns` creates the provider of one service with DNS.
        """
        self._path = path
        self._reserved_names = frozenset(reserved_names)
        self._was_probed = was_probed
        self._make_dns = make_dns
        self._interval_s = interval_s
        self._reload_requested = asyncio.Event()
        self._applied = self._state()
        self._targets = self._checked(read_services(path))
        self._present: dict[str, Target] = {}
        # The providers of the services with DNS, and their running tasks.
        self._by_dns: dict[str, tuple[DnsProvider, asyncio.Task[None]]] = {}

    async def start(self, sink: Sink) -> None:
        """Upsert all backends of the file as it was when the gateway started."""
        await self._apply(self._targets, sink)

    async def run(self, sink: Sink) -> None:
        """Poll the file and apply its changes."""
        seen = self._applied
        try:
            with _on_sighup(self._reload_requested.set):
                while True:
                    is_requested = await self._wait_for_poll()
                    before, seen = seen, await asyncio.to_thread(self._state)
                    if is_requested or (seen != self._applied and seen == before):
                        self._applied = seen
                        try:
                            await self._reload(sink)
                        except Exception as error:
                            log.error("discovery failed", file=str(self._path), exc_info=error)
        finally:
            for name in list(self._by_dns):
                await self._stop(name)

    async def _wait_for_poll(self) -> bool:
        """Wait for the next poll or SIGHUP; return whether it was SIGHUP."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._reload_requested.wait()
        is_requested = self._reload_requested.is_set()
        self._reload_requested.clear()
        return is_requested

    def _state(self) -> State | None:
        """Return the identity of the file's content, or None if there is no file."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _checked(self, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        duplicates = sorted(self._reserved_names & {target.name for target in targets})
        if duplicates:
            raise SettingsError(f"{self._path}: {', '.join(duplicates)}: name already used in SERVICES")
        return targets

    async def _reload(self, sink: Sink) -> None:
        try:
            targets = self._checked(await asyncio.to_thread(read_services, self._path))
        except SettingsError as error:
            log.error("services file invalid, keeping the backends", reason=str(error))
            return
        before = set(self._present)
        await self._apply(targets, sink)
        after = set(self._present)
        log.info(
            "services file applied", services=sorted(after), new=sorted(after - before), gone=sorted(before - after)
        )

    async def _apply(self, targets: tuple[Target, ...], sink: Sink) -> None:
        """Add and change before removing, so that there are never fewer backends than before or after."""
        targets_by_name = {target.name: target for target in targets}
        for name, target in targets_by_name.items():
            if not target.by_dns:
                sink.upsert(target)
            elif name in self._by_dns and _is_same_host(self._present[name], target):
                self._by_dns[name][0].retarget(target, sink)
            else:
                await self._follow(self._make_dns(target, self._reserved_names | targets_by_name.keys()), sink)
        removed, added = self._present.keys() - targets_by_name.keys(), targets_by_name.keys() - self._present.keys()
        if removed and added:
            # New backends get no requests before their first probe.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_WAIT_S):
                    while not all(self._was_probed(name) for name in added):  # noqa: ASYNC110  # the poller has no event per name
                        await asyncio.sleep(PROBE_WAIT_S / 100)
        for name in removed:
            if name not in self._by_dns:
                sink.remove(name)
        for name in [name for name in self._by_dns if name not in targets_by_name or not targets_by_name[name].by_dns]:
            for replica in await self._stop(name) - targets_by_name.keys():
                sink.remove(replica)
        self._present = targets_by_name

    async def _follow(self, provider: DnsProvider, sink: Sink) -> None:
        """Apply the replicas of `provider` and its changes, instead of the previous provider's of this name."""
        before = await self._stop(provider.name)
        await provider.start(sink)
        for replica in before - provider.listed.keys():
            sink.remove(replica)
        task = asyncio.create_task(provider.run(sink), name="DNS discovery of the services file")
        self._by_dns[provider.name] = provider, task

    async def _stop(self, name: str) -> set[str]:
        """Stop following a service; return the names of its replicas, which stay."""
        if name not in self._by_dns:
            return set()
        provider, task = self._by_dns.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return set(provider.listed)


def _is_same_host(one: Target, other: Target) -> bool:
    return (one.host, one.port, one.tls, one.path) == (other.host, other.port, other.tls, other.path)


def ignore_sighup() -> None:
    """Make SIGHUP harmless for this process and its forks until a FileProvider runs."""
    signal.signal(signal.SIGHUP, lambda _signal, _frame: None)


@contextlib.contextmanager
def _on_sighup(reload: Callable[[], None]) -> Iterator[None]:
    """Within the block, call `reload` on the running event loop at SIGHUP. Only a main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGHUP)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
