"""All backends by name: the sink of the discovery providers."""

from collections.abc import Callable, Iterator, Mapping

from gateway.backends.backend import Backend, Clock
from gateway.discovery.target import Target
from gateway.upstream.pool import Pool


class Backends:
    """All backends by name, in the order in which they were added."""

    def __init__(self, keys: Mapping[str, str], clock: Clock) -> None:
        """`keys` are the bearer keys to send, by backend name."""
        self._keys = keys
        self._clock = clock
        self._backends: dict[str, Backend] = {}
        self._watchers: list[Callable[[], None]] = []
        self.on_added: Callable[[Backend], None] = lambda _: None
        self.on_removed: Callable[[Backend], None] = lambda _: None

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` whenever a state, a model list or the set of backends changes."""
        self._watchers.append(watcher)

    def upsert(self, target: Target) -> None:
        """Add the backend of this name, or replace it, at its place in the order, if its target differs.

        A backend moved by configuration inherits the state of the old one until its first probe, so that no request
        fails in between.
        """
        present = self._backends.get(target.name)
        if present is not None and present.target.differs_only_in_weight(target):
            present.target = target  # `doubt` may differ too
            return
        key = self._keys.get(target.name) or self._keys.get(target.service)
        backend = Backend(target, Pool(target), self._clock, key)
        backend.on_change = self._changed
        if present is not None:
            backend.offers = present.offers  # so that errors can name them
            if not target.by_dns:
                backend.inherit_state_from(present)
            self._close(present)
        same_server = next((one for one in self if one.target.is_same_server(target)), None)
        if same_server is not None:
            backend.adopt(same_server)
        self._backends[target.name] = backend
        self.on_added(backend)
        self._changed()

    def remove(self, name: str) -> None:
        """Remove the backend of this name, if there is one. Requests in flight finish."""
        backend = self._backends.pop(name, None)
        if backend is not None:
            self._close(backend)
            self._changed()

    def is_responding(self, name: str) -> bool:
        """Whether the backend of this name responded to the last probe, with whatever status."""
        backend = self._backends.get(name)
        return backend is not None and backend.last_probe.response_time_ms is not None

    def was_probed(self, name: str) -> bool:
        """Whether the backend of this name has been probed, with whatever result."""
        backend = self._backends.get(name)
        return backend is not None and backend.last_probe.finished_at is not None

    def get(self, name: str) -> Backend | None:
        """Return the backend of this name, or None."""
        return self._backends.get(name)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())

    def __len__(self) -> int:
        return len(self._backends)

    def _close(self, backend: Backend) -> None:
        self.on_removed(backend)
        backend.pool.close()

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()
