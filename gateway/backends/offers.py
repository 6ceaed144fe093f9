"""The models that a backend serves. Pure."""

from dataclasses import dataclass

from kit.config.catalogue import Entry, Kind


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that a backend serves.

    `name` is the cluster's name for it, `upstream` the backend's. `names` are all names that a request may use. The
    backend itself accepts those in `verbatim`; None among them means that the request may omit the name.
    """

    name: str
    upstream: str
    kind: Kind | None
    names: frozenset[str]
    verbatim: frozenset[str | None]


def offer_of_entry(entry: Entry, *, kind: Kind | None = None) -> Offer:
    """Return the offer of one of our own services, which accepts every name of its entry, or none."""
    names = frozenset(entry.names)
    return Offer(entry.name, entry.name, kind or entry.kind, names, names | {None})


def offer_of_id(model: str, entry: Entry | None, kind: Kind | None) -> Offer:
    """Return the offer for a foreign server's model id; `entry` is its catalogue entry, if any."""
    names = frozenset(entry.names) | {model} if entry else frozenset({model})
    return Offer(
        entry.name if entry else model, model, kind or (entry.kind if entry else None), names, frozenset({model})
    )
