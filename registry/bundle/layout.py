"""Byte layout of a bundle's volumes. Pure and deterministic.

A volume is a POSIX tar archive. Contents follow one another over all volumes; one that does not fit is split into
parts, which `cat` joins again.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from registry.bundle.manifest import BundleError, Piece, Volume, volume_name

BLOCK = 512
# Two empty blocks end a tar archive.
END = bytes(2 * BLOCK)
# A content is not split for less free space than this; the volume stays shorter.
MIN_PIECE = 16 << 20
MIN_VOLUME = 64 << 10


@dataclass(frozen=True)
class Content:
    """A content to lay out; `member` is its name in the tar archive."""

    member: str
    sha256: str
    size: int


def lay_out(contents: list[Content], volume_size: int) -> list[Volume]:
    """Lay out `contents` in volumes of at most `volume_size` bytes. Raises BundleError if that is too small."""
    if volume_size < MIN_VOLUME:
        raise BundleError(f"The volume size must be at least {MIN_VOLUME} bytes, not {volume_size}.")
    min_piece = min(MIN_PIECE, volume_size // 4)
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
            if left > room and room < min_piece:
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
    """Return the tar header of a member, independent of time, user and machine."""
    info = tarfile.TarInfo(member)
    info.size, info.mode, info.mtime = size, 0o444, 0
    return info.tobuf(tarfile.PAX_FORMAT)


def padded(length: int) -> int:
    """Round `length` up to a multiple of the block size."""
    return -(-length // BLOCK) * BLOCK


def gaps(volume: Volume) -> Iterator[tuple[bytes, Piece | None]]:
    """Yield, in order, the bytes before each piece and the piece; finally the bytes after the last piece and None."""
    before = b""
    for piece in volume.pieces:
        yield before + header(piece.member, piece.length), piece
        before = bytes(padded(piece.length) - piece.length)
    yield before + END, None
