"""Import a local folder, published like a download."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.config.hub_names import COMMIT, BadName, check_path
from kit.hub.listing import git_blob_sha1
from registry.models.library import Library
from registry.models.manifest import FileEntry, LeftOut, Manifest, Source, commit_of, entry_of
from registry.models.model_card import CARD
from registry.safety.policy import STRICT, Inspection, Policy, Refused
from registry.store.interface import DigestMismatch

CHUNK = 1 << 20
# Left by tools in a model's folder, and never loaded. A submodule has a file .git.
SKIPPED = frozenset({".git", ".cache", "__pycache__", ".DS_Store", ".gitattributes.lock"})
# Of a Hub client's cache (huggingface_hub: file_download); links of a snapshot lead to `blobs`.
_CACHE_FOLDER = "models--"
_SNAPSHOTS, _BLOBS = "snapshots", "blobs"

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
    policy: Policy = STRICT,
    on_bytes: OnBytes = lambda _path, _count: None,
) -> Manifest:
    """Store the files of `folder` and publish them as `name`.

    Without `commit`, the commit id is derived from the content. `on_bytes` gets each file's path and the number of
    bytes read: every byte once for its digest, and again if its blob is new (see `bytes_to_read`).
    Raises FolderError, Refused, BadName, StoreError; then nothing is published.
    """
    if commit is not None and not COMMIT.fullmatch(commit):
        raise BadName(f"{commit!r} is not a commit id: 40 lower-case hex digits.")
    found, left_out = folder_files(folder)
    inspection = Inspection(library.store, repo, policy, (path for path, _ in found))
    files, card = [], None
    # The small ones first: what they lack is known before the weights are stored.
    for path, file in sorted(found, key=lambda each: each[1].stat().st_size):
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
        try:
            scanned = inspection.scan(entry)
        except Refused as refused:
            library.delete_unreachable(set(refused.digests), spare=set)
            raise
        card = scanned.card if path == CARD else card
        files.append(entry)
    return library.publish(
        name=name,
        repo=repo,
        revision=revision,
        commit=commit or commit_of(files),
        files=files,
        source=Source(kind="folder", place=folder.name),
        card=card,
        left_out=left_out,
    )


def bytes_to_read(folder: Path) -> int:
    """The number of bytes that `import_folder` reports to `on_bytes`. Raises FolderError, BadName."""
    return sum(2 * file.stat().st_size for _, file in folder_files(folder)[0])


def folder_files(folder: Path) -> tuple[list[tuple[str, Path]], list[LeftOut]]:
    """The files below `folder` as (path in the repository, file), sorted, and what is left out.

    Links to files of the folder are followed, and links of a Hub cache's snapshot into its `blobs`.
    Raises FolderError if the folder is missing or empty, or contains something else; BadName.
    """
    if not folder.is_dir():
        raise FolderError(f"No such folder: {folder}. Specify the folder with the model's config.json.")
    folder = folder.resolve()
    _refuse_cache(folder)
    found, left_out = [], []
    is_snapshot = folder.parent.name == _SNAPSHOTS and folder.parent.parent.name.startswith(_CACHE_FOLDER)
    roots = [folder, *([folder.parent.parent / _BLOBS] if is_snapshot else [])]

    def refuse(error: OSError) -> None:
        raise FolderError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        for name in sorted({*folders, *files} & SKIPPED):
            path = (Path(place) / name).relative_to(folder).as_posix()
            left_out.append(LeftOut.of(path, "left by a tool, never loaded"))
        folders[:] = [name for name in folders if name not in SKIPPED]
        for name in folders:
            if (Path(place) / name).is_symlink():
                raise FolderError(f"{Path(place) / name} is a link to a folder. Put the folder itself there.")
        for name in files:
            if name not in SKIPPED:
                file = Path(place) / name
                found.append((check_path(file.relative_to(folder).as_posix()), _target(file, roots)))
    if not found:
        raise FolderError(f"The folder {folder} is empty.")
    return sorted(found), left_out


def _target(file: Path, roots: list[Path]) -> Path:
    """The file itself, or the one that a link leads to. Raises FolderError if that is not below one of `roots`."""
    target = file.resolve()
    if not target.is_file():
        raise FolderError(f"{file} is a broken link or not a file. Remove it, or complete the download; import again.")
    if not any(target.is_relative_to(root) for root in roots):
        raise FolderError(f"{file} is a link to {target}, outside of the folder. Put the file itself there (cp -L).")
    return target


def _refuse_cache(folder: Path) -> None:
    """Refuse the parts of a Hub client's cache that are not one commit of a model. Raises FolderError."""
    caches = [folder] if folder.name.startswith(_CACHE_FOLDER) else sorted(folder.glob(f"{_CACHE_FOLDER}*"))
    snapshots = sorted(path for cache in caches for path in cache.glob(f"{_SNAPSHOTS}/*") if path.is_dir())
    if folder.name == _SNAPSHOTS and folder.parent.name.startswith(_CACHE_FOLDER):
        caches, snapshots = [folder.parent], sorted(path for path in folder.iterdir() if path.is_dir())
    if caches:
        some = ", ".join(str(path) for path in snapshots[:3]) or "none is complete"
        raise FolderError(f"{folder} is a Hub client's cache. Import one of its snapshots: {some}.")


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
