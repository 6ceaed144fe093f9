"""What a bundle's signed `manifest.json` says: models, archives of images, and where in which volume their bytes lie.

Everything that a reader needs stands here: no header of a tar file is trusted, only bytes at a place, with a digest.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kit.config.hub_names import COMMIT, BadName, check_name, check_paths, check_repo, check_revision
from registry.models.manifest import Manifest, Name

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.minisig"
FORMAT: Literal["gpu-cluster-bundle"] = "gpu-cluster-bundle"
VERSION: Literal[1] = 1
MAX_MANIFEST = 256 << 20

Bytes = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Empty in an unfinished export, for a volume that is not written yet.
DigestOrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class BundleError(Exception):
    """A bundle cannot be made, or is not what it should be; the message says which part and what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Piece(_Part):
    """A run of bytes of one content, as one member of a volume."""

    member: str = Field(description="the name by which `tar` shows it")
    sha256: Digest = Field(description="of the whole content, of which this may be a part")
    start: Bytes = Field(description="where in the content it begins")
    length: Bytes
    at: Bytes = Field(description="where in the volume its first byte lies")


class Volume(_Part):
    """One file of the bundle: a tar archive."""

    name: str = Field(pattern=r"^volume-[0-9]{4,6}\.tar$")
    size: Bytes
    sha256: DigestOrNone
    pieces: tuple[Piece, ...]


class Image(_Part):
    """An image that an archive holds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,255}$")
    id: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", description="as `docker image inspect` tells it")


class Archive(_Part):
    """What `docker save` wrote."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\.tar$")
    size: Bytes
    sha256: Digest
    images: tuple[Image, ...]


class BundledModel(_Part):
    """A model: the name, and the commit at which it points."""

    pointer: Name
    manifest: Manifest


class Bundle(_Part):
    """A bundle's manifest."""

    format: Literal["gpu-cluster-bundle"] = FORMAT
    version: Literal[1] = VERSION
    created: str
    models: tuple[BundledModel, ...]
    archives: tuple[Archive, ...]
    volumes: tuple[Volume, ...]

    @property
    def size(self) -> int:
        """The bytes of all volumes together."""
        return sum(volume.size for volume in self.volumes)

    def blobs(self) -> dict[str, int]:
        """digest -> size of every file of the models, each once."""
        return {file.sha256: file.size for model in self.models for file in model.manifest.files}

    def contents(self) -> dict[str, int]:
        """digest -> size of everything in the volumes, in the order in which it lies there."""
        return {archive.sha256: archive.size for archive in self.archives} | self.blobs()

    def pieces(self, digest: str) -> Iterator[tuple[Volume, Piece]]:
        """Where a content lies."""
        for volume in self.volumes:
            for piece in volume.pieces:
                if piece.sha256 == digest:
                    yield volume, piece

    def files_of(self, digest: str) -> str:
        """In words: what a content is."""
        for archive in self.archives:
            if archive.sha256 == digest:
                return archive.name
        for model in self.models:
            for file in model.manifest.files:
                if file.sha256 == digest:
                    return f"{file.path} of {model.pointer.name}"
        return f"blob {digest[:12]}"


def to_json(bundle: Bundle) -> bytes:
    """The manifest's bytes: JSON with a line for each model, archive and volume, for `grep` and `sed`."""
    lines = []
    for key, value in bundle.model_dump(mode="json").items():
        if isinstance(value, list) and value:
            entries = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in value)
            lines.append(f'"{key}": [\n{entries}\n]')
        else:
            lines.append(f'"{key}": {json.dumps(value)}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def parse(data: bytes, where: str) -> Bundle:
    """Read a manifest and check that it makes sense. Raises BundleError; `where` is for its message."""
    try:
        document: Any = json.loads(data)
        if isinstance(document, dict) and document.get("format") == FORMAT and document.get("version") != VERSION:
            raise BundleError(
                f"{where} is a bundle of version {document.get('version')}, this registry reads {VERSION}. "
                "Use the registry that the bundle was made with, or a newer one."
            )
        bundle = Bundle.model_validate(document)
        _check_names(bundle)
        _check_layout(bundle)
    except (ValidationError, BadName, ValueError) as error:
        raise BundleError(f"{where} is not a bundle's manifest: {' '.join(str(error).split())[:300]}") from error
    return bundle


def _check_names(bundle: Bundle) -> None:
    for model in bundle.models:
        pointer, manifest = model.pointer, model.manifest
        check_name(pointer.name), check_repo(pointer.repo), check_revision(pointer.revision)
        if (pointer.repo, pointer.commit) != (manifest.repo, manifest.commit) or not COMMIT.fullmatch(pointer.commit):
            raise BadName(f"{pointer.name} does not point at its own manifest.")
        check_paths(file.path for file in manifest.files)
    sizes = bundle.blobs()
    if any(sizes[file.sha256] != file.size for model in bundle.models for file in model.manifest.files):
        raise BadName("One digest has two sizes.")
    names = [model.pointer.name for model in bundle.models]
    if len(set(names)) < len(names):
        raise BadName("A name appears twice.")


def _check_layout(bundle: Bundle) -> None:
    """Every content is there, whole, once, its pieces one after the other."""
    done: dict[str, int] = {}
    open_digest = ""
    contents = bundle.contents()
    for number, volume in enumerate(bundle.volumes, start=1):
        if volume.name != volume_name(number):
            raise BadName(f"Volume {number} is called {volume.name}.")
        end = 0
        for piece in volume.pieces:
            if piece.at < end or piece.at + piece.length > volume.size:
                raise BadName(f"{piece.member} lies outside of {volume.name}.")
            end = piece.at + piece.length
            if open_digest and piece.sha256 != open_digest:
                raise BadName(f"{open_digest} is not complete.")
            if piece.sha256 not in contents or (piece.sha256 in done and not open_digest):
                raise BadName(f"{piece.member} of {volume.name} belongs to nothing.")
            if piece.start != done.get(piece.sha256, 0):
                raise BadName(f"{piece.member} of {volume.name} does not follow the piece before.")
            done[piece.sha256] = piece.start + piece.length
            open_digest = piece.sha256 if done[piece.sha256] < contents[piece.sha256] else ""
    if done != contents:
        raise BadName("Its volumes do not hold what its models are made of.")


def volume_name(number: int) -> str:
    """The file name of volume `number`, from 1."""
    return f"volume-{number:04}.tar"
