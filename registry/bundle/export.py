"""Writing a bundle: models out of a library and archives of images into signed volumes, to be carried as files.

What is to be written is laid out before the first byte is; so an interrupted export goes on at the first volume that
is not whole. Every content is hashed on its way: a blob that is damaged in the store gets into no bundle.
"""

import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kit.units import human_bytes
from registry.bundle.layout import Content, blob_member, gaps, lay_out
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
from registry.bundle.source import CHUNK, draft_of, open_place, read_small
from registry.bundle.target import free_bytes, open_target, unwritable, write_durably
from registry.models.library import Library, NotInStore
from registry.store.interface import Store

# What is worked on, and a count of bytes that are done of it.
OnBytes = Callable[[str, int], None]


def plan_bundle(library: Library, names: Iterable[str], archives: Iterable[Archive], volume_size: int) -> Bundle:
    """What a bundle of these models (none named: all) would hold, without digests of volumes. Raises BundleError."""
    given = list(names)
    try:
        pointers = library.named(given)
    except NotInStore as error:
        raise BundleError(str(error)) from error
    if not given:
        # The order is part of the layout; that of the store's keys is not quite that of the names.
        pointers.sort(key=lambda pointer: pointer.name)
    models = tuple(
        BundledModel(pointer=pointer, manifest=library.manifest(pointer.repo, pointer.commit)) for pointer in pointers
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    bundle = Bundle(created=now, models=models, archives=tuple(archives), volumes=())
    if not bundle.contents():
        raise BundleError("There is nothing to export: no model is in the store.")
    _check_blobs(library.store, bundle)
    contents = [Content(archive.name, archive.sha256, archive.size) for archive in bundle.archives]
    contents += [Content(blob_member(digest), digest, size) for digest, size in bundle.blobs().items()]
    return bundle.model_copy(update={"volumes": tuple(lay_out(contents, volume_size))})


def _check_blobs(store: Store, bundle: Bundle) -> None:
    for digest, size in bundle.blobs().items():
        if store.blob_size(digest) != size:
            raise _damaged(bundle, digest)


def _damaged(bundle: Bundle, digest: str) -> BundleError:
    what = bundle.files_of(digest)
    return BundleError(
        f"{what} is damaged or gone in the store. Mend it: registry verify {what.rpartition(' of ')[2]} --repair"
    )


class Export:
    """One export to `path`, begun or gone on with. `archives` tells in which file each archive of the plan lies."""

    def __init__(self, plan: Bundle, path: Path, store: Store, archives: dict[str, Path]) -> None:
        """Look at what is there already. Raises BundleError when that is something else."""
        self._path = path
        self._store = store
        self._archives = archives
        self._draft = draft_of(path)
        self._target = open_target(path)
        self._bundle = self._earlier(plan) or plan
        volumes = self._bundle.volumes
        self._written = next((at for at, volume in enumerate(volumes) if not volume.sha256), len(volumes))

    @property
    def bytes_left(self) -> int:
        """The bytes of the volumes that are not written yet."""
        return sum(volume.size for volume in self._bundle.volumes[self._written :])

    def run(self, key: SecretKey, on_bytes: OnBytes) -> Bundle:
        """Write what is missing, and sign. Raises BundleError, StoreError."""
        finished = self._finished(key)
        if finished is not None:
            return finished
        free = free_bytes(self._path)
        if free < self.bytes_left:
            raise BundleError(
                f"{self._path} has no room: {human_bytes(self.bytes_left)} are needed, {human_bytes(free)} are free."
            )
        self._target.forget_unwritten(self._bundle.volumes, self._written)
        self._keep()
        hashers = _Hashers(self._bundle, self._read)
        for number in range(self._written, len(self._bundle.volumes)):
            volume = self._bundle.volumes[number]
            with self._target.volume(volume) as file:
                digest = self._write(volume, file, hashers, on_bytes)
            volumes = list(self._bundle.volumes)
            volumes[number] = volume.model_copy(update={"sha256": digest})
            self._bundle = self._bundle.model_copy(update={"volumes": tuple(volumes)})
            self._keep()
        manifest = to_json(self._bundle)
        parse(manifest, MANIFEST)  # what we would not read we do not write
        models = ", ".join(model.pointer.name for model in self._bundle.models)
        self._target.finish(manifest, key.sign(manifest, f"bundle of {self._bundle.created}: {models}"[:800]))
        self._draft.unlink(missing_ok=True)
        return self._bundle

    def _earlier(self, plan: Bundle) -> Bundle | None:
        """What an export that was interrupted left, if it was of the same."""
        try:
            data = self._draft.read_bytes()
        except FileNotFoundError:
            if any(self._path.glob("volume-*.tar")) and not (self._path / MANIFEST).exists():
                raise BundleError(f"{self._path} holds volumes of something else. Choose another place.") from None
            return None
        except OSError as error:
            raise unwritable(self._draft, error) from error
        draft = parse(data, str(self._draft))
        if _without_digests(draft) != _without_digests(plan):
            raise BundleError(
                f"{self._path} holds an unfinished bundle of something else. Finish that one first, or remove it."
            )
        return draft

    def _finished(self, key: SecretKey) -> Bundle | None:
        """The bundle that is at the path already, if it is the same. Raises BundleError when it is another."""
        if not (self._path.is_file() or (self._path / SIGNATURE).exists()):
            return None
        place = open_place(self._path)
        manifest = read_small(place, MANIFEST, MAX_MANIFEST)
        there = parse(manifest, place.where)
        try:
            key.public.verify(manifest, read_small(place, SIGNATURE, MAX_FILE), name=place.where)
        except SignatureError as error:
            raise BundleError(f"{error} Choose another place.") from error
        if _without_digests(there) != _without_digests(self._bundle):
            raise BundleError(f"{self._path} is a bundle of something else already. Choose another place.")
        self._draft.unlink(missing_ok=True)
        return there

    def _keep(self) -> None:
        try:
            write_durably(self._draft, to_json(self._bundle))
        except OSError as error:
            raise unwritable(self._path, error) from error

    def _write(self, volume: Volume, file: BinaryIO, hashers: "_Hashers", on_bytes: OnBytes) -> str:
        whole = hashlib.sha256()

        def put(data: bytes) -> None:
            file.write(data)
            whole.update(data)
            on_bytes(volume.name, len(data))

        for before, piece in gaps(volume):
            put(before)
            if piece is not None:
                for chunk in hashers.checked(piece, self._read(piece.sha256, piece.start, piece.length)):
                    put(chunk)
        return whole.hexdigest()

    def _read(self, digest: str, start: int, length: int) -> Iterator[bytes]:
        path = self._archives.get(digest)
        if path is None:
            yield from self._store.read_blob(digest, start, start + length)
            return
        try:
            with path.open("rb") as file:
                file.seek(start)
                while length and (chunk := file.read(min(CHUNK, length))):
                    length -= len(chunk)
                    yield chunk
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}.") from error


class _Hashers:
    """Hashes contents that may be cut into pieces of several volumes."""

    def __init__(self, bundle: Bundle, read: Callable[[str, int, int], Iterator[bytes]]) -> None:
        self._bundle = bundle
        self._sizes = bundle.contents()
        self._read = read
        self._hasher = hashlib.sha256()
        self._digest, self._done = "", 0

    def checked(self, piece: Piece, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass the bytes of the next piece on. Raises BundleError when the content that ends with it is not right."""
        if (self._digest, self._done) != (piece.sha256, piece.start):
            self._hasher, self._digest, self._done = hashlib.sha256(), piece.sha256, piece.start
            for chunk in self._read(piece.sha256, 0, piece.start):  # pieces that an earlier run wrote
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
    """What two bundles of the same contents agree in."""
    volumes = tuple(volume.model_copy(update={"sha256": ""}) for volume in bundle.volumes)
    return bundle.model_copy(update={"volumes": volumes, "created": ""})
