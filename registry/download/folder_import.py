"""Importing a local folder: the same publication as a download, with the folder as the source."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.config.hub_names import COMMIT, BadName, check_path
from kit.hub.listing import git_blob_sha1
from registry.models.library import Library
from registry.models.manifest import FileEntry, Manifest, Source, commit_of, entry_of
from registry.models.model_card import CARD, MAX_BYTES, parse_card
from registry.store.interface import DigestMismatch

CHUNK = 1 << 20
# What tools leave in a model's folder and nobody loads.
SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})
SKIPPED_FILES = frozenset({".DS_Store", ".gitattributes.lock"})

OnBytes = Callable[[str, int], None]


class FolderError(Exception):
    """The folder cannot be imported; the message says which file and why."""


def import_folder(
    library: Library,
    folder: Path,
    *,
    name: str,
    repo: str,
    revision: str,
    commit: str | None = None,
    on_bytes: OnBytes = lambda _path, _count: None,
) -> Manifest:
    """Put the files of `folder` into the library's store and publish them as `name`.

    `commit` None: the id follows from the contents. `on_bytes` is told each file's name and how many bytes of it were
    read; every byte is read once for its digest, and once more if its blob is new (see `bytes_to_read`).
    Raises FolderError, BadName, StoreError.
    """
    if commit is not None and not COMMIT.fullmatch(commit):
        raise BadName(f"{commit!r} is not a commit: 40 hex digits, lower case.")
    files = []
    for path, file in folder_files(folder):
        entry = _digest(path, file, on_bytes)
        if library.store.blob_size(entry.sha256) == entry.size:
            on_bytes(path, entry.size)
        else:
            library.quota.check(path, entry.size)
            try:
                library.store.put_blob(entry.sha256, entry.size, _chunks(path, file, on_bytes))
            except DigestMismatch as error:
                raise FolderError(
                    f"{file} changed while it was read: {error}. Import again when it is done."
                ) from error
        files.append(entry)
    return library.publish(
        name=name,
        repo=repo,
        revision=revision,
        commit=commit or commit_of(files),
        files=files,
        source=Source(kind="folder", place=folder.name),
        card=parse_card((folder / CARD).read_bytes()[:MAX_BYTES]) if (folder / CARD).is_file() else None,
    )


def bytes_to_read(folder: Path) -> int:
    """How many bytes `import_folder` will tell `on_bytes` about. Raises FolderError, BadName."""
    return sum(2 * file.stat().st_size for _, file in folder_files(folder))


def folder_files(folder: Path) -> list[tuple[str, Path]]:
    """The files below `folder` as (path in the repository, file), sorted. A link to a file counts as that file.

    Raises FolderError when there is no such folder, nothing in it, or something that is not a file.
    """
    if not folder.is_dir():
        raise FolderError(f"There is no folder {folder}. Give the folder that holds the model's config.json.")
    found = []

    def refuse(error: OSError) -> None:
        raise FolderError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in files:
            if name in SKIPPED_FILES:
                continue
            file = Path(place) / name
            if not file.is_file():
                raise FolderError(f"{file} is not a file, or a link that leads nowhere. Remove it and import again.")
            found.append((check_path(file.relative_to(folder).as_posix()), file))
    if not found:
        raise FolderError(f"The folder {folder} is empty.")
    return sorted(found)


def _digest(path: str, file: Path, on_bytes: OnBytes) -> FileEntry:
    size = file.stat().st_size
    sha256, git_sha1, done = hashlib.sha256(), git_blob_sha1(size), 0
    for chunk in _chunks(path, file, on_bytes):
        sha256.update(chunk)
        git_sha1.update(chunk)
        done += len(chunk)
    if done != size:
        raise FolderError(f"{file} changed while it was read. Import again when it is done.")
    return entry_of(path, size, sha256.hexdigest(), git_sha1.hexdigest())


def _chunks(path: str, file: Path, on_bytes: OnBytes) -> Iterator[bytes]:
    try:
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
                on_bytes(path, len(chunk))
    except OSError as error:
        raise FolderError(f"{file} cannot be read: {error.strerror}. Give this user the right to read it.") from error
