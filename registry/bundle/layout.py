"""Which bytes lie where in a bundle's volumes. Pure: the same contents and volume size give the same layout, always.

A volume is a POSIX tar archive, so that `tar` can list and unpack it. Contents follow one another over all volumes; one
that does not fit is cut, and its parts, joined with `cat`, are the content.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from registry.bundle.manifest import BundleError, Piece, Volume, volume_name

BLOCK = 512
# Two empty blocks end a tar archive.
END = bytes(2 * BLOCK)
# A content is not cut to fill less than this: a volume rather stays a little shorter.
MIN_PIECE = 16 << 20
MIN_VOLUME = 64 << 10


@dataclass(frozen=True)
class Content:
    """Something to be put into the volumes; `member` is what `tar` is to call it."""

    member: str
    sha256: str
    size: int


def blob_member(digest: str) -> str:
    """The member of a blob: its place in the store."""
    return f"blobs/sha256/{digest}"


def lay_out(contents: list[Content], volume_size: int) -> list[Volume]:
    """The volumes of at most `volume_size` bytes that take `contents`, in order, without digests yet.

    Raises BundleError for a size that is too small.
    """
    if volume_size < MIN_VOLUME:
        raise BundleError(f"A volume takes at least {MIN_VOLUME} bytes, not {volume_size}.")
    least = min(MIN_PIECE, volume_size // 4)
    volumes: list[Volume] = []
    pieces: list[Piece] = []
    end = 0

    def close() -> None:
        nonlocal pieces, end
        name = volume_name(len(volumes) + 1)
        volumes.append(Volume(name=name, size=end + len(END), sha256="", pieces=tuple(pieces)))
        pieces, end = [], 0

    for content in contents:
        start, part = 0, 0
        while start < content.size or part == 0:
            left = content.size - start
            head = len(header(content.member, left))
            room = (volume_size - len(END) - end - head) // BLOCK * BLOCK
            if left > room and room < least:
                close()
                continue
            length = min(left, room)
            part += 1
            member = content.member if length == content.size else f"{content.member}.part{part:04}"
            at = end + len(header(member, length))
            pieces.append(Piece(member=member, sha256=content.sha256, start=start, length=length, at=at))
            start += length
            end = at + padded(length)
    if pieces or not volumes:
        close()
    return volumes


def header(member: str, size: int) -> bytes:
    """What stands before a member in a tar archive; nothing of it depends on time, user or machine."""
    info = tarfile.TarInfo(member)
    info.size, info.mode, info.mtime = size, 0o444, 0
    return info.tobuf(tarfile.PAX_FORMAT)


def padded(length: int) -> int:
    """`length` bytes up to the next whole block."""
    return -(-length // BLOCK) * BLOCK


def gaps(volume: Volume) -> Iterator[tuple[bytes, Piece | None]]:
    """The volume in order: the bytes to write before each piece, and the piece; at last those after the last one."""
    before = b""
    for piece in volume.pieces:
        yield before + header(piece.member, piece.length), piece
        before = bytes(padded(piece.length) - piece.length)
    yield before + END, None
