"""Files whose bytes went to clients before their digest was known, and then were not proved.

A client whose download broke off keeps the beginning and asks for the rest (`Range: bytes=N-`), perhaps after weeks.
The rest of the right file behind the beginning of a wrong one has the right size, which is all that huggingface_hub
looks at. So the store remembers such files, and whoever goes on with one gets it from its beginning.
"""

from registry.store.interface import Store
from registry.units import utc_now


def note(store: Store, digest: str) -> bool:
    """Remember that unproved bytes of this blob go out from now on; False if that was known. Raises StoreError."""
    return store.create_document(_key(digest), {"since": utc_now()})


def forget(store: Store, digest: str) -> None:
    """All that went out is proved. Raises StoreError."""
    store.delete_document(_key(digest))


def is_noted(store: Store, digest: str) -> bool:
    """Whether some client may hold a beginning of this blob that nobody proved. Raises StoreError."""
    return store.get_document(_key(digest)) is not None


def _key(digest: str) -> str:
    return f"unproved/{digest}.json"
