"""Import a local folder, published like a download."""

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
# Left by tools in a model's folder, and never loaded.
SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})
SKIPPED_FILES = frozenset({".DS_Store", ".gitattributes.lock"})

OnBytes = Callable[[str, int], None]


class FolderError(Exception):
    """The folder cannot be imported; the message names the file and the reason."""


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
    """Store the files of `folder` and publish them as `name`.

    Without `commit`, the commit id is derived from the content. `on_bytes` gets each file's path and the number of
    bytes read: every byte once for its digest, and again if its blob is new (see `bytes_to_read`).
    Raises FolderError, BadName, StoreError.
    """
    if commit is not None and not COMMIT.fullmatch(commit):
        raise BadName(f"{commit!r} is not a commit id: 40 lower-case hex digits.")
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
                    f"{file} changed while it was read: {error}. Import again when it is complete."
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
    """The number of bytes that `import_folder` reports to `on_bytes`. Raises FolderError, BadName."""
    return sum(2 * file.stat().st_size for _, file in folder_files(folder))


def folder_files(folder: Path) -> list[tuple[str, Path]]:
    """The files below `folder` as (path in the repository, file), sorted. Links to files are followed.

    Raises FolderError if the folder is missing or empty, or contains something that is not a file.
    """
    if not folder.is_dir():
        raise FolderError(f"No such folder: {folder}. Specify the folder with the model's config.json.")
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
                raise FolderError(f"{file} is a broken link or not a file. Remove it and import again.")
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
        raise FolderError(f"{file} changed while it was read. Import again when it is complete.")
    return entry_of(path, size, sha256.hexdigest(), git_sha1.hexdigest())


def _chunks(path: str, file: Path, on_bytes: OnBytes) -> Iterator[bytes]:
    try:
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
                on_bytes(path, len(chunk))
    except OSError as error:
        raise FolderError(f"{file} cannot be read: {error.strerror}. Check its permissions.") from error
