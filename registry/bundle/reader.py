"""Reading a bundle: signature first, then every byte of every volume, once, in order, in bounded memory."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from registry.bundle.manifest import MANIFEST, MAX_MANIFEST, SIGNATURE, Bundle, BundleError, Piece, Volume, parse
from registry.bundle.minisign import MAX_FILE, PublicKey
from registry.bundle.source import CHUNK, Place, open_place, read_small

# The volume's name and a count of bytes that were read of it.
OnBytes = Callable[[str, int], None]


@dataclass(frozen=True)
class Extent:
    """One content of the bundle, to be read once, to its end, before the next."""

    digest: str
    size: int
    chunks: Iterator[bytes]


class BundleReader:
    """A bundle whose signature is right. Use it for one pass."""

    def __init__(self, path: Path, key: PublicKey) -> None:
        """Check the signature and that every volume is there in its size. Raises BundleError, SignatureError."""
        self.place: Place = open_place(path)
        data = read_small(self.place, MANIFEST, MAX_MANIFEST)
        signature = read_small(self.place, SIGNATURE, MAX_FILE)
        self.comment = key.verify(data, signature, name=f"{MANIFEST} in {self.place.where}")
        self.bundle: Bundle = parse(data, f"{MANIFEST} in {self.place.where}")
        self.damaged: list[str] = []
        """The volumes that were read and are not what the manifest says, with the reason."""
        self._check_volumes()

    def _check_volumes(self) -> None:
        missing, wrong = [], []
        for volume in self.bundle.volumes:
            size = self.place.size(volume.name)
            if size is None:
                missing.append(volume.name)
            elif size != volume.size:
                wrong.append(f"{volume.name} ({size} bytes instead of {volume.size})")
        if missing:
            raise BundleError(f"{self.place.where} lacks {', '.join(missing)}. Bring every volume, then do this again.")
        if wrong:
            raise BundleError(f"{self.place.where}: {', '.join(wrong)} was changed or cut off. Copy it again.")

    def contents(self, on_bytes: OnBytes) -> Iterator[Extent]:
        """Every content in the order in which it lies there; what the consumer leaves of one is read all the same.

        When it is exhausted, every byte of every volume was read, and `damaged` names the volumes that are wrong.
        """
        stream = _Stream(self, on_bytes)
        sizes = self.bundle.contents()
        pieces = [(volume, piece) for volume in self.bundle.volumes for piece in volume.pieces]
        at = 0
        while at < len(pieces):
            digest = pieces[at][1].sha256
            end = at + 1
            while end < len(pieces) and pieces[end][1].sha256 == digest:
                end += 1
            chunks = _Kept(stream.read(pieces[at:end]))
            yield Extent(digest, sizes[digest], chunks)
            for _ in chunks:
                pass
            at = end
        stream.finish()

    def tell_damage(self, volume: Volume, reason: str) -> None:
        """Note that a volume is wrong."""
        self.damaged.append(f"{volume.name} ({reason})")

    def refusal(self) -> BundleError:
        """What to say when `damaged` is not empty."""
        return BundleError(
            f"{self.place.where}: {', '.join(self.damaged)} was changed after it was made. Copy it again from where it "
            "was made."
        )


class _Kept(Iterator[bytes]):
    """An iterator that nobody closes: a consumer that gives up closes the generator that it reads from, else."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def __next__(self) -> bytes:
        return next(self._chunks)


class _Stream:
    """Reads the volumes one after the other and compares each volume's digest when its end is reached."""

    def __init__(self, reader: BundleReader, on_bytes: OnBytes) -> None:
        self._reader = reader
        self._on_bytes = on_bytes
        self._volumes = iter(reader.bundle.volumes)
        self._volume: Volume | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._at, self._rest = 0, b""

    def read(self, pieces: list[tuple[Volume, Piece]]) -> Iterator[bytes]:
        """The bytes of these pieces, which follow what was read before."""
        for volume, piece in pieces:
            while self._volume is not volume:
                self._end()
                self._begin(next(self._volumes))
            yield from self._take(piece.at, piece.length)

    def finish(self) -> None:
        """Read what is left."""
        self._end()
        for volume in self._volumes:
            self._begin(volume)
            self._end()

    def _begin(self, volume: Volume) -> None:
        self._volume, self._chunks = volume, self._read(volume)
        self._at, self._rest = 0, b""

    def _end(self) -> None:
        if self._volume is not None:
            for _ in self._chunks:
                pass
            self._volume = None

    def _read(self, volume: Volume) -> Iterator[bytes]:
        hasher, done = hashlib.sha256(), 0
        with self._reader.place.open(volume.name) as file:
            while done < volume.size:
                chunk = file.read(min(CHUNK, volume.size - done))
                if not chunk:
                    break
                hasher.update(chunk)
                done += len(chunk)
                self._on_bytes(volume.name, len(chunk))
                yield chunk
        if done != volume.size:
            self._reader.tell_damage(volume, f"ends after {done} of {volume.size} bytes")
        elif hasher.hexdigest() != volume.sha256:
            self._reader.tell_damage(volume, f"its sha256 is {hasher.hexdigest()}")

    def _take(self, at: int, length: int) -> Iterator[bytes]:
        """The bytes of the open volume from `at`, after skipping what lies before."""
        skip = at - self._at
        self._at = at + length
        while skip or length:
            chunk = self._rest or next(self._chunks, b"")
            if not chunk:
                return  # cut off: the volume's digest tells
            if skip:
                skipped = min(skip, len(chunk))
                self._rest, skip = chunk[skipped:], skip - skipped
                continue
            piece, self._rest = chunk[:length], chunk[length:]
            length -= len(piece)
            yield piece
