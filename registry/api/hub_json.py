"""Convert manifests to the JSON of the Hugging Face Hub's API. Pure.

Sources: https://huggingface.co/docs/hub/api and the parsers of huggingface_hub (`ModelInfo`, `RepoFile`, `RepoFolder`,
`GitRefs`). There are no Xet fields: with them clients would download from Hugging Face's own storage.
"""

import hashlib
from pathlib import PurePosixPath
from typing import Any

from registry.models.manifest import FileEntry, Manifest, lfs_pointer
from registry.models.model_metadata import Metadata

Json = dict[str, Any]


def model_info(manifest: Manifest, metadata: Metadata, *, blobs: bool) -> Json:
    """`GET /api/models/{id}`; `blobs` adds sizes and digests to the files."""
    siblings = [_sibling(file) if blobs else {"rfilename": file.path} for file in manifest.files]
    return model_summary(manifest, metadata, details=True) | {"siblings": siblings, "usedStorage": manifest.size}


def model_summary(manifest: Manifest, metadata: Metadata, *, details: bool) -> Json:
    """One entry of `GET /api/models`; `details` adds the card's front matter, the configuration and the files."""
    author = manifest.repo.partition("/")[0] if "/" in manifest.repo else None
    entry: Json = {
        "_id": hashlib.sha256(manifest.repo.encode()).hexdigest()[:24],  # the Hub's are as long
        "id": manifest.repo,
        "modelId": manifest.repo,
        "author": author,
        "sha": manifest.commit,
        "createdAt": manifest.created,
        "lastModified": manifest.created,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(metadata.tags),
    }
    if metadata.library_name:
        entry["library_name"] = metadata.library_name
    if metadata.pipeline_tag:
        entry["pipeline_tag"] = metadata.pipeline_tag
    if details:
        entry["cardData"] = metadata.card_data
        entry["config"] = metadata.config
        entry["siblings"] = [{"rfilename": file.path} for file in manifest.files]
    return entry


def tree(manifest: Manifest, folder: str, *, recursive: bool, expand: bool) -> list[Json] | None:
    """`GET .../tree/{rev}/{folder}`: folders and files below `folder` ('' is the root), or None without such a one."""
    prefix = folder + "/" if folder else ""
    inside = [file for file in manifest.files if file.path.startswith(prefix)]
    if not inside and folder:
        return None
    folders = _folder_ids(manifest)
    entries: dict[str, Json] = {}
    for file in inside:
        parts = file.path.removeprefix(prefix).split("/")
        depths = range(1, len(parts)) if recursive else range(1, min(len(parts), 2))
        for depth in depths:
            path = prefix + "/".join(parts[:depth])
            entries.setdefault(path, _folder(manifest, path, folders[path], expand))
        if recursive or len(parts) == 1:
            entries[file.path] = _file(manifest, file, expand)
    return [entries[path] for path in sorted(entries)]


def paths_info(manifest: Manifest, paths: list[str], *, expand: bool) -> list[Json]:
    """`POST .../paths-info/{rev}`: the entries among `paths` that exist, files and folders."""
    files = {file.path: file for file in manifest.files}
    folders = _folder_ids(manifest)
    found = []
    for path in dict.fromkeys(path.strip("/") for path in paths):
        if path in files:
            found.append(_file(manifest, files[path], expand))
        elif path in folders:
            found.append(_folder(manifest, path, folders[path], expand))
    return found


def refs(targets: dict[str, str]) -> Json:
    """`GET .../refs`: every ref is listed as a branch, since the Hub's API does not distinguish tags."""
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in sorted(targets.items())
    ]
    return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}


def commits(manifest: Manifest) -> list[Json]:
    """`GET .../commits/{rev}`: the commit itself; its history is not mirrored."""
    title = f"Mirrored from {manifest.source.place}"
    return [{"id": manifest.commit, "title": title, "message": "", "authors": [], "date": manifest.created}]


def _sibling(file: FileEntry) -> Json:
    entry: Json = {"rfilename": file.path, "size": file.size, "blobId": file.git_sha1, "sha256": file.sha256}
    if file.lfs:
        entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": _pointer_size(file)}
    return entry


def _file(manifest: Manifest, file: FileEntry, expand: bool) -> Json:
    # `sha256` is an extension, with which another registry verifies small files; Hub clients ignore unknown keys.
    entry: Json = {
        "type": "file",
        "oid": file.git_sha1,
        "size": file.size,
        "path": file.path,
        "sha256": file.sha256,
    }
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": _pointer_size(file)}
    return entry | (_last_commit(manifest) if expand else {})


def _folder(manifest: Manifest, path: str, oid: str, expand: bool) -> Json:
    entry: Json = {"type": "directory", "oid": oid, "size": 0, "path": path}
    return entry | (_last_commit(manifest) if expand else {})


def _folder_ids(manifest: Manifest) -> dict[str, str]:
    """An id for each folder, which changes with its content. The Hub has git's tree id, which clients only show."""
    hashers: dict[str, hashlib._Hash] = {}
    for file in manifest.files:
        for parent in PurePosixPath(file.path).parents[:-1]:
            hasher = hashers.setdefault(str(parent), hashlib.sha256(str(parent).encode()))
            hasher.update(f"\n{file.path} {file.sha256}".encode())
    return {path: hasher.hexdigest()[:40] for path, hasher in hashers.items()}


def _last_commit(manifest: Manifest) -> Json:
    commit = commits(manifest)[0]
    return {"lastCommit": {key: commit[key] for key in ("id", "title", "date")}}


def _pointer_size(file: FileEntry) -> int:
    return len(lfs_pointer(file.sha256, file.size))
