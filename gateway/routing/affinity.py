"""The home backend of a conversation, among backends that are otherwise equal.

Every gateway and every worker must choose the same one without communication: rendezvous hashing (Thaler and
Ravishankar, 1998).
"""

from zlib import crc32


def rendezvous(key: bytes, name: str) -> int:
    """Return the weight of the backend `name` for the conversation `key`; the highest weight is its home."""
    # crc32 is linear: without the multiplication one name would beat another for all keys or for none.
    mixed = (crc32(key) ^ crc32(name.encode())) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 >> 16 & 0xFFFFFFFFFFFF
