"""The models that a backend serves. Pure."""

from dataclasses import dataclass

from kit.config.catalogue import Entry, Kind


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that a backend serves.

    `name` is the cluster's name for it, `upstream` the backend's. `names` are all names that a request may use. The
    backend itself accepts those in `verbatim`; None among them means that the request may omit the name.
    `context_length` is in tokens, None if the backend does not report it.
    """

    name: str
    upstream: str
    kind: Kind | None
    names: frozenset[str]
    verbatim: frozenset[str | None]
    context_length: int | None = None


def offer_of_entry(entry: Entry, *, kind: Kind | None = None, context_length: int | None = None) -> Offer:
    """Return the offer of one of our own services, which accepts every name of its entry, or none."""
    names = frozenset(entry.names)
    return Offer(entry.name, entry.name, kind or entry.kind, names, names | {None}, context_length)


def offer_of_id(model: str, entry: Entry | None, kind: Kind | None, context_length: int | None = None) -> Offer:
    """Return the offer for a foreign server's model id; `entry` is its catalogue entry, if any."""
    names = frozenset(entry.names) | {model} if entry else frozenset({model})
    name, kind = (entry.name, kind or entry.kind) if entry else (model, kind)
    return Offer(name, model, kind, names, frozenset({model}), context_length)
