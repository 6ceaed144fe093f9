"""The home backend of a conversation, among backends that are otherwise equal.

Every gateway and every worker must choose the same one without communication: rendezvous hashing (Thaler and
Ravishankar, 1998).
"""

from collections.abc import Sequence
from zlib import crc32

from gateway.routing.request import RoutingRequest


def rendezvous(key: bytes, name: str) -> int:
    """Return the weight of the backend `name` for the conversation `key`; the highest weight is its home."""
    # crc32 is linear: without the multiplication one name would beat another for all keys or for none.
    mixed = (crc32(key) ^ crc32(name.encode())) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 >> 16 & 0xFFFFFFFFFFFF


def session_key(request: RoutingRequest, hashes: Sequence[int]) -> bytes:
    """Return the key of the conversation: the client's, else the prompt's first hash, else empty."""
    if request.session:
        return request.session
    return hashes[0].to_bytes(4) if hashes else b""
