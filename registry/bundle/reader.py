"""Sequential reader of a bundle: verifies the signature, then reads every volume once, in bounded memory."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from registry.bundle.manifest import MANIFEST, MAX_MANIFEST, SIGNATURE, Bundle, BundleError, Piece, Volume, parse
from registry.bundle.minisign import MAX_FILE, PublicKey
from registry.bundle.source import CHUNK, BundleSource, open_source, read_small_file

# Called with a volume's name and the bytes read or written.
OnBytes = Callable[[str, int], None]


@dataclass(frozen=True)
class Extent:
    """One content of the bundle; its chunks can be read once, before the next content."""

    digest: str
    size: int
    chunks: Iterator[bytes]


class BundleReader:
    """A bundle with a valid signature; for one pass."""

    def __init__(self, path: Path, key: PublicKey) -> None:
        """Verify the signature and the presence and size of every volume. Raises BundleError, SignatureError."""
        self.source: BundleSource = open_source(path)
        data = read_small_file(self.source, MANIFEST, MAX_MANIFEST)
        signature = read_small_file(self.source, SIGNATURE, MAX_FILE)
        key.verify(data, signature, name=f"{MANIFEST} in {self.source.where}")
        self.bundle: Bundle = parse(data, f"{MANIFEST} in {self.source.where}")
        self.damaged: list[str] = []
        """Volumes that do not match the manifest, with the reason."""
        self._volumes = iter(self.bundle.volumes)
        self._volume: Volume | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._at, self._rest = 0, b""
        self._check_volumes()

    def _check_volumes(self) -> None:
        missing, resized = [], []
        for volume in self.bundle.volumes:
            size = self.source.size(volume.name)
            if size is None:
                missing.append(volume.name)
            elif size != volume.size:
                resized.append(f"{volume.name} ({size} bytes instead of {volume.size})")
        if missing:
            raise BundleError(f"{self.source.where} has no {', '.join(missing)}. Copy every volume, then try again.")
        if resized:
            raise BundleError(
                f"{self.source.where}: changed or truncated: {', '.join(resized)}. Copy the bundle again."
            )

    def contents(self, on_bytes: OnBytes) -> Iterator[Extent]:
        """Yield the contents in order. Chunks that the consumer does not read are skipped.

        When exhausted, every byte of every volume has been read, and `damaged` lists the damaged volumes.
        """
        sizes = self.bundle.contents()
        pieces = ((volume, piece) for volume in self.bundle.volumes for piece in volume.pieces)
        for digest, group in groupby(pieces, key=lambda at: at[1].sha256):
            chunks = self._read(group, on_bytes)
            yield Extent(digest, sizes[digest], chunks)
            for _ in chunks:
                pass
        self._end()
        for volume in self._volumes:
            self._begin(volume, on_bytes)
            self._end()

    def damage_error(self) -> BundleError:
        """Return the error for the damaged volumes."""
        return BundleError(
            f"{self.source.where}: damaged: {', '.join(self.damaged)}. Copy the bundle again from its origin."
        )

    def _read(self, pieces: Iterable[tuple[Volume, Piece]], on_bytes: OnBytes) -> Iterator[bytes]:
        """Yield the bytes of the next pieces; the digest of a volume is compared at its end."""
        for volume, piece in pieces:
            while self._volume is not volume:
                self._end()
                self._begin(next(self._volumes), on_bytes)
            yield from self._read_range(piece.at, piece.length)

    def _begin(self, volume: Volume, on_bytes: OnBytes) -> None:
        self._volume, self._chunks = volume, self._read_volume(volume, on_bytes)
        self._at, self._rest = 0, b""

    def _end(self) -> None:
        if self._volume is not None:
            for _ in self._chunks:
                pass
            self._volume = None

    def _read_volume(self, volume: Volume, on_bytes: OnBytes) -> Iterator[bytes]:
        hasher, done = hashlib.sha256(), 0
        with self.source.open(volume.name) as file:
            while done < volume.size:
                chunk = file.read(min(CHUNK, volume.size - done))
                if not chunk:
                    break
                hasher.update(chunk)
                done += len(chunk)
                on_bytes(volume.name, len(chunk))
                yield chunk
        if done != volume.size:
            self.damaged.append(f"{volume.name} (ends after {done} of {volume.size} bytes)")
        elif hasher.hexdigest() != volume.sha256:
            self.damaged.append(f"{volume.name} (its sha256 is {hasher.hexdigest()})")

    def _read_range(self, at: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes of the current volume from offset `at`."""
        skip = at - self._at
        self._at = at + length
        while skip or length:
            chunk = self._rest or next(self._chunks, b"")
            if not chunk:
                return  # truncated: the digest check of the volume reports it
            if skip:
                skipped = min(skip, len(chunk))
                self._rest, skip = chunk[skipped:], skip - skipped
                continue
            piece, self._rest = chunk[:length], chunk[length:]
            length -= len(piece)
            yield piece
