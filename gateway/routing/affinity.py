"""Which backend a conversation belongs to where nothing else decides.

Every gateway and every worker must come to the same one without asking another: rendezvous hashing (Thaler and
Ravishankar, 1998).
"""

from collections.abc import Sequence
from zlib import crc32

from gateway.routing.request import RoutingRequest


def rendezvous(key: bytes, name: str) -> int:
    """How much a conversation is drawn to the backend of this name: of several the highest has it."""
    # crc32 is linear: without the multiplication one name would win against another for all keys or for none.
    mixed = (crc32(key) ^ crc32(name.encode())) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 >> 16 & 0xFFFFFFFFFFFF


def session_key(request: RoutingRequest, hashes: Sequence[int]) -> bytes:
    """What names the conversation: what the client says, else how the prompt begins; empty where neither does."""
    if request.session:
        return request.session
    return hashes[0].to_bytes(4) if hashes else b""
