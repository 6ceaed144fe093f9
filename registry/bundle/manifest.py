"""The signed `manifest.json` of a bundle: models, image archives, and the position of their bytes in the volumes.

A reader needs nothing else: tar headers are not trusted, only byte ranges with digests.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kit.config.hub_names import COMMIT, BadName, check_name, check_paths, check_repo, check_revision
from registry.models.manifest import Manifest, Name

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.minisig"
FORMAT: Literal["gpu-cluster-bundle"] = "gpu-cluster-bundle"
VERSION: Literal[1] = 1
MAX_MANIFEST = 256 << 20
# As `utc_now` writes it, so that two compare as strings.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)

Bytes = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Empty for a volume that an unfinished export has not written yet.
DigestOrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class BundleError(Exception):
    """A bundle cannot be written, or is invalid; the message names the part and says what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Piece(_Part):
    """A byte range of one content, stored as one member of a volume."""

    member: str = Field(description="name in the tar archive")
    sha256: Digest = Field(description="digest of the whole content")
    start: Bytes = Field(description="offset in the content")
    length: Bytes
    at: Bytes = Field(description="offset in the volume")


class Volume(_Part):
    """One file of the bundle: a tar archive."""

    name: str = Field(pattern=r"^volume-[0-9]{4,6}\.tar$")
    size: Bytes
    sha256: DigestOrNone
    pieces: tuple[Piece, ...]


class Image(_Part):
    """A container image in an archive."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,255}$")
    id: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", description="the ID of `docker image inspect`")


class Archive(_Part):
    """An archive written by `docker save`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\.tar$")
    size: Bytes
    sha256: Digest
    images: tuple[Image, ...]


class BundledModel(_Part):
    """A model: its name, and the manifest of the commit that the name refers to."""

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
        """Bytes of all volumes."""
        return sum(volume.size for volume in self.volumes)

    def blobs(self) -> dict[str, int]:
        """Return digest -> size of the models' files."""
        return {file.sha256: file.size for model in self.models for file in model.manifest.files}

    def contents(self) -> dict[str, int]:
        """Return digest -> size of all contents, in the order of the volumes."""
        return {archive.sha256: archive.size for archive in self.archives} | self.blobs()

    def describe_content(self, digest: str) -> str:
        """Return a name of a content for messages: `FILE of MODEL`, or the archive's name."""
        for archive in self.archives:
            if archive.sha256 == digest:
                return archive.name
        for model in self.models:
            for file in model.manifest.files:
                if file.sha256 == digest:
                    return f"{file.path} of {model.pointer.name}"
        return f"blob {digest[:12]}"


def to_json(bundle: Bundle) -> bytes:
    """Serialize as JSON with one line per model, archive and volume, for `grep` and `sed` in scripts/bundle.sh."""
    lines = []
    for key, value in bundle.model_dump(mode="json").items():
        if isinstance(value, list) and value:
            entries = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in value)
            lines.append(f'"{key}": [\n{entries}\n]')
        else:
            lines.append(f'"{key}": {json.dumps(value)}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def parse(data: bytes, where: str) -> Bundle:
    """Parse and validate a manifest; `where` is for messages. Raises BundleError."""
    try:
        document: Any = json.loads(data)
        if isinstance(document, dict) and document.get("format") == FORMAT and document.get("version") != VERSION:
            raise BundleError(
                f"{where} has bundle version {document.get('version')}, this registry supports {VERSION}. "
                "Use the version of the registry that wrote the bundle, or a newer one."
            )
        bundle = Bundle.model_validate(document)
        _check_names(bundle)
        _check_layout(bundle)
    except (ValidationError, BadName, ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not a bundle's manifest: {' '.join(str(error).split())[:300]}") from error
    return bundle


def _check_names(bundle: Bundle) -> None:
    for model in bundle.models:
        pointer, manifest = model.pointer, model.manifest
        check_name(pointer.name), check_repo(pointer.repo), check_revision(pointer.revision)
        if not _TIME.fullmatch(manifest.created):
            raise BadName(f"{pointer.name} was created at {manifest.created!r:.100}, which is not a time.")
        if (pointer.repo, pointer.commit) != (manifest.repo, manifest.commit) or not COMMIT.fullmatch(pointer.commit):
            raise BadName(f"{pointer.name} does not match its manifest.")
        check_paths(file.path for file in manifest.files)
    sizes = bundle.blobs()
    if any(sizes[file.sha256] != file.size for model in bundle.models for file in model.manifest.files):
        raise BadName("Two sizes for one digest.")
    names = [model.pointer.name for model in bundle.models]
    if len(set(names)) < len(names):
        raise BadName("Duplicate model name.")


def _check_layout(bundle: Bundle) -> None:
    """Check that every content is present once, complete, with its pieces in order."""
    done: dict[str, int] = {}
    open_digest = ""
    contents = bundle.contents()
    for number, volume in enumerate(bundle.volumes, start=1):
        if volume.name != volume_name(number):
            raise BadName(f"Volume {number} has the name {volume.name}.")
        end = 0
        for piece in volume.pieces:
            if piece.at < end or piece.at + piece.length > volume.size:
                raise BadName(f"{piece.member} is outside of {volume.name} or overlaps.")
            end = piece.at + piece.length
            if open_digest and piece.sha256 != open_digest:
                raise BadName(f"{open_digest} is not complete.")
            if piece.sha256 not in contents or (piece.sha256 in done and not open_digest):
                raise BadName(f"{piece.member} of {volume.name} belongs to no model or archive.")
            if piece.start != done.get(piece.sha256, 0):
                raise BadName(f"{piece.member} of {volume.name} does not continue the previous piece.")
            done[piece.sha256] = piece.start + piece.length
            open_digest = piece.sha256 if done[piece.sha256] < contents[piece.sha256] else ""
    if done != contents:
        raise BadName("The volumes do not have all files of the models.")


def volume_name(number: int) -> str:
    """Return the file name of volume `number`, starting at 1."""
    return f"volume-{number:04}.tar"
