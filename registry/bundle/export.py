"""Export of models and image archives into a signed bundle of volumes.

The layout is computed first, so an interrupted export resumes at the first incomplete volume. Every blob's digest is
verified while it is written.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kit.units import human_bytes, utc_now
from registry.bundle.layout import Content, gaps, lay_out
from registry.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST,
    SIGNATURE,
    Archive,
    Bundle,
    BundledModel,
    BundleError,
    Piece,
    Volume,
    parse,
    to_json,
)
from registry.bundle.minisign import MAX_FILE, SecretKey, SignatureError
from registry.bundle.reader import OnBytes
from registry.bundle.source import CHUNK, draft_of, open_source, read_small_file, reading
from registry.bundle.target import free_bytes, open_target, write_durably, writing
from registry.models.library import Library, NotInStore
from registry.store.interface import Store, blob_key


def plan_bundle(library: Library, names: Iterable[str], archives: Iterable[Archive], volume_size: int) -> Bundle:
    """Plan a bundle of the models `names` (default: all); volumes have no digests yet. Raises BundleError."""
    names = list(names)
    try:
        pointers = library.named(names)
    except NotInStore as error:
        raise BundleError(str(error)) from error
    if not names:
        # A stable order, because it is part of the layout; the order of the store's keys differs.
        pointers.sort(key=lambda pointer: pointer.name)
    models = tuple(
        BundledModel(pointer=pointer, manifest=library.manifest(pointer.repo, pointer.commit)) for pointer in pointers
    )
    bundle = Bundle(created=utc_now("seconds"), models=models, archives=tuple(archives), volumes=())
    if not bundle.contents():
        raise BundleError("Nothing to export: the store has no models.")
    for digest, size in bundle.blobs().items():
        if library.store.blob_size(digest) != size:
            raise _damaged(bundle, digest)
    contents = [Content(archive.name, archive.sha256, archive.size) for archive in bundle.archives]
    contents += [Content(blob_key(digest), digest, size) for digest, size in bundle.blobs().items()]
    return bundle.model_copy(update={"volumes": tuple(lay_out(contents, volume_size))})


def _damaged(bundle: Bundle, digest: str) -> BundleError:
    file = bundle.describe_content(digest)
    return BundleError(
        f"{file} is damaged or missing in the store. To repair: registry verify {file.rpartition(' of ')[2]} --repair"
    )


class Export:
    """A new or resumed export to `path`. `archives` maps the digest of each archive to its file."""

    def __init__(self, plan: Bundle, path: Path, store: Store, archives: dict[str, Path]) -> None:
        """Read the draft of an interrupted export. Raises BundleError if `path` has other content."""
        self._path = path
        self._store = store
        self._archives = archives
        self._draft = draft_of(path)
        self._target = open_target(path)
        self._bundle = self._load_draft(plan) or plan
        volumes = self._bundle.volumes
        self._written = next((at for at, volume in enumerate(volumes) if not volume.sha256), len(volumes))

    @property
    def bytes_left(self) -> int:
        """Bytes of the volumes that are not written yet."""
        return sum(volume.size for volume in self._bundle.volumes[self._written :])

    def run(self, key: SecretKey, on_bytes: OnBytes) -> Bundle:
        """Write the missing volumes and sign. Raises BundleError, StoreError."""
        finished = self._load_finished(key)
        if finished is not None:
            return finished
        free = free_bytes(self._path)
        if free < self.bytes_left:
            raise BundleError(
                f"Not enough space for {self._path}: {human_bytes(self.bytes_left)} needed, {human_bytes(free)} free."
            )
        self._target.truncate(self._bundle.volumes, self._written)
        self._save_draft()
        verifier = _ContentVerifier(self._bundle, self._read)
        for number in range(self._written, len(self._bundle.volumes)):
            volume = self._bundle.volumes[number]
            with self._target.volume(volume) as file:
                digest = self._write(volume, file, verifier, on_bytes)
            volumes = list(self._bundle.volumes)
            volumes[number] = volume.model_copy(update={"sha256": digest})
            self._bundle = self._bundle.model_copy(update={"volumes": tuple(volumes)})
            self._save_draft()
        manifest = to_json(self._bundle)
        parse(manifest, MANIFEST)  # never write a manifest that we would reject
        models = ", ".join(model.pointer.name for model in self._bundle.models)
        self._target.finish(manifest, key.sign(manifest, f"bundle of {self._bundle.created}: {models}"[:800]))
        self._draft.unlink(missing_ok=True)
        return self._bundle

    def _load_draft(self, plan: Bundle) -> Bundle | None:
        """Return the draft of an interrupted export of the same plan."""
        with writing(self._draft):
            data = self._draft.read_bytes() if self._draft.exists() else None
        if data is None:
            if any(self._path.glob("volume-*.tar")) and not (self._path / MANIFEST).exists():
                raise BundleError(f"{self._path} has volumes of another bundle. Choose another --output.")
            return None
        draft = parse(data, str(self._draft))
        if _without_digests(draft) != _without_digests(plan):
            raise BundleError(
                f"{self._path} has an unfinished bundle with other content. Finish that export first, or remove it."
            )
        return draft

    def _load_finished(self, key: SecretKey) -> Bundle | None:
        """Return the complete bundle at the path, if any. Raises BundleError if its content differs."""
        if not (self._path.is_file() or (self._path / SIGNATURE).exists()):
            return None
        source = open_source(self._path)
        manifest = read_small_file(source, MANIFEST, MAX_MANIFEST)
        existing = parse(manifest, source.where)
        try:
            key.public.verify(manifest, read_small_file(source, SIGNATURE, MAX_FILE), name=source.where)
        except SignatureError as error:
            raise BundleError(f"{error} Choose another --output.") from error
        if _without_digests(existing) != _without_digests(self._bundle):
            raise BundleError(f"{self._path} is a bundle with other content. Choose another --output.")
        self._draft.unlink(missing_ok=True)
        return existing

    def _save_draft(self) -> None:
        with writing(self._path):
            write_durably(self._draft, to_json(self._bundle))

    def _write(self, volume: Volume, file: BinaryIO, verifier: "_ContentVerifier", on_bytes: OnBytes) -> str:
        hasher = hashlib.sha256()

        def write(data: bytes) -> None:
            file.write(data)
            hasher.update(data)
            on_bytes(volume.name, len(data))

        for before, piece in gaps(volume):
            write(before)
            if piece is not None:
                for chunk in verifier.verify(piece, self._read(piece.sha256, piece.start, piece.length)):
                    write(chunk)
        return hasher.hexdigest()

    def _read(self, digest: str, start: int, length: int) -> Iterator[bytes]:
        path = self._archives.get(digest)
        if path is None:
            yield from self._store.read_blob(digest, start, start + length)
            return
        with reading(path), path.open("rb") as file:
            file.seek(start)
            while length and (chunk := file.read(min(CHUNK, length))):
                length -= len(chunk)
                yield chunk


class _ContentVerifier:
    """Verifies digests of contents that may be split over several volumes."""

    def __init__(self, bundle: Bundle, read: Callable[[str, int, int], Iterator[bytes]]) -> None:
        self._bundle = bundle
        self._sizes = bundle.contents()
        self._read = read
        self._hasher = hashlib.sha256()
        self._digest, self._done = "", 0

    def verify(self, piece: Piece, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks of the next piece. Raises BundleError if a content ends here with the wrong digest."""
        if (self._digest, self._done) != (piece.sha256, piece.start):
            self._hasher, self._digest, self._done = hashlib.sha256(), piece.sha256, piece.start
            for chunk in self._read(piece.sha256, 0, piece.start):  # pieces that an interrupted run has written
                self._hasher.update(chunk)
        length = 0
        for chunk in chunks:
            self._hasher.update(chunk)
            length += len(chunk)
            yield chunk
        self._done += length
        if length != piece.length or (
            self._done == self._sizes[self._digest] and self._hasher.hexdigest() != self._digest
        ):
            raise _damaged(self._bundle, self._digest)


def _without_digests(bundle: Bundle) -> Bundle:
    volumes = tuple(volume.model_copy(update={"sha256": ""}) for volume in bundle.volumes)
    return bundle.model_copy(update={"volumes": volumes, "created": ""})
