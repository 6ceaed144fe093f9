"""The models in a store: publish, find, resolve, delete. The layout of their documents is private to this module.

`models/<org--name>/commits/<sha>.json` is written first, `models/<org--name>/refs/<revision>.json` and
`names/<name>.json` last, so that a name or revision always leads to a commit with all its blobs.
"""

from collections.abc import Callable, Iterable
from urllib.parse import quote, unquote

from kit.config.catalogue import Catalogue
from kit.config.hub_names import (
    COMMIT,
    BadName,
    check_name,
    check_paths,
    check_repo,
    check_revision,
    is_commit_prefix,
    repo_folder,
)
from kit.units import utc_now
from registry.models.manifest import FileEntry, LeftOut, Manifest, Name, Source
from registry.models.model_card import Card
from registry.models.quota import Quota
from registry.store.deletion_intents import wait_for_deletions
from registry.store.interface import Store, StoreError

MAIN = "main"
HEAD = "HEAD"


class BlobsMissing(StoreError):
    """Blobs of the commit are missing; it can be published once they are stored again."""

    def __init__(self, files: list[FileEntry]) -> None:
        super().__init__(f"The blobs of {len(files)} files are not in the store, the first is {files[0].path}.")
        self.files = files


class CommitConflict(StoreError):
    """The same commit was published before with different content at the same path."""


class RepoUnknown(LookupError):
    """The repository is not in this store."""


class NotInStore(BadName):
    """Unknown model names; the message lists the known ones."""


class RevisionUnknown(LookupError):
    """The repository is in this store, the revision is not."""


class Library:
    """Reads and writes models in one store. Thread-safe."""

    def __init__(self, store: Store, catalogue: Catalogue, *, quota: int | None = None) -> None:
        """`quota`: limit on the size of all blobs, in bytes."""
        self.store = store
        self.catalogue = catalogue
        self.quota = Quota(store, quota)

    def publish(
        self, *, name: str, repo: str, revision: str, commit: str, files: Iterable[FileEntry], source: Source,
        card: Card | None = None, left_out: Iterable[LeftOut] = (), created: str | None = None,
    ) -> Manifest:  # fmt: skip
        """Publish a commit, whose blobs are stored, under `name`, as `revision` of `repo`, and under its own id.

        Files of an earlier publication of the same commit are kept. `main` moves to the commit unless another branch or
        tag is published. `created`: when it was published where it comes from, if that is another registry.
        Raises BadName, BlobsMissing, CommitConflict, StoreError, with nothing changed.
        """
        check_name(name), check_repo(repo), check_revision(revision)
        with self.store.exclusive():
            earlier = self._published(repo, commit)
            merged = self._merged(repo, commit, files, earlier)
            self._check_blobs(merged)
            paths = {file.path for file in merged}
            manifest = Manifest(
                repo=repo, commit=commit, files=merged, source=source, card=card or Card(),
                # Never earlier than before: an older bundle must not make the commit look older than it is.
                created=max(created or utc_now(), earlier.created if created and earlier else ""),
                left_out=tuple(each for each in left_out if each.path not in paths),
            )  # fmt: skip
            self._put_manifest(manifest)
            for ref in self.refs_to_move(repo, revision, commit):
                self.store.put_document(_ref_key(repo, ref), {"commit": commit})
            pointer = Name(
                name=name, repo=repo, revision=revision, commit=commit, updated=utc_now(), source_repo=source.repo
            )
            self.store.put_document(_name_key(name), pointer.model_dump())
        return manifest

    def _check_blobs(self, files: Iterable[FileEntry]) -> None:
        missing = [file for file in files if self.store.blob_size(file.sha256) != file.size]
        if missing:
            raise BlobsMissing(missing)

    def _put_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, which protects its blobs from garbage collection.

        Raises BlobsMissing for blobs that another process deletes at the same time.
        """
        key = _commit_key(manifest.repo, manifest.commit)
        earlier = self.store.get_document(key)
        self.store.put_document(key, manifest.model_dump())
        if wait_for_deletions(self.store, {file.sha256 for file in manifest.files}):
            try:
                self._check_blobs(manifest.files)
            except BlobsMissing:
                if earlier is None:
                    self.store.delete_document(key)
                else:
                    self.store.put_document(key, earlier)
                raise

    def _published(self, repo: str, commit: str) -> Manifest | None:
        document = self.store.get_document(_commit_key(repo, commit))
        return None if document is None else Manifest.model_validate(document)

    def _merged(
        self, repo: str, commit: str, files: Iterable[FileEntry], earlier: Manifest | None
    ) -> tuple[FileEntry, ...]:
        by_path = {file.path: file for file in files}
        if not by_path:
            raise BadName(f"Nothing to publish: no file of {repo} was selected.")
        for file in earlier.files if earlier else ():
            if by_path.setdefault(file.path, file).sha256 != file.sha256:
                raise CommitConflict(
                    f"{repo} at {commit} is already published with a different {file.path}. "
                    "Delete that model first, or import without --revision."
                )
        check_paths(by_path)
        return tuple(by_path[path] for path in sorted(by_path))

    def refs_to_move(self, repo: str, revision: str, commit: str) -> list[str]:
        """The refs of `repo` that a publication of `commit` as `revision` moves."""
        refs = [] if revision == commit else [revision]
        moves_main = revision == MAIN or bool(COMMIT.fullmatch(revision)) or self._ref(repo, MAIN) is None
        return [*refs, MAIN] if moves_main and MAIN not in refs else refs

    def names(self) -> list[Name]:
        """The published names, sorted."""
        documents = (self.store.get_document(key) for key in self.store.list_documents("names/"))
        return [Name.model_validate(document) for document in documents if document is not None]

    def named(self, names: Iterable[str]) -> list[Name]:
        """Look up `names`, or all names if none is given; duplicates are removed, the order is kept.

        Raises NotInStore, BadName.
        """
        known = {pointer.name: pointer for pointer in self.names()}
        selected = list(dict.fromkeys(self.canonical(name) for name in names)) or list(known)
        unknown = [name for name in selected if name not in known]
        if unknown:
            raise NotInStore(f"Not in the store: {', '.join(unknown)}. In the store: {', '.join(known) or 'nothing'}.")
        return [known[name] for name in selected]

    def name(self, name: str) -> Name | None:
        """The commit that `name` points at, or None. Raises BadName."""
        document = self.store.get_document(_name_key(check_name(name)))
        return None if document is None else Name.model_validate(document)

    def canonical(self, name: str) -> str:
        """Resolve an alias or repository of the catalogue to the model's name. Raises BadName."""
        entry = self.catalogue.find(name)
        return check_name(entry.name if entry else name)

    def repos(self) -> list[str]:
        """The repositories that names point at, sorted."""
        return sorted({name.repo for name in self.names()})

    def find_repo(self, id: str) -> str:
        """Resolve a repository, a name, or an alias of the catalogue to a repository. Raises BadName, RepoUnknown."""
        check_repo(id)
        if self._ref(id, MAIN):
            return id
        if "/" not in id:
            name = self.name(self.canonical(id))
            if name is not None:
                return name.repo
        entry = self.catalogue.find(id)
        if entry is not None and self._ref(entry.hf_repo, MAIN):
            return entry.hf_repo
        raise RepoUnknown(id)

    def moved_to(self, id: str) -> str | None:
        """The repository here, or in the catalogue, that the unknown `id` stands for, or None.

        It is `id` in another letter case, or was renamed to `id` at its source.
        """
        if self.catalogue.find(id) is not None:
            return None
        folded = id.lower()
        known: list[tuple[str, tuple[str, ...]]]
        known = [(each.repo, (each.name, each.repo, each.source_repo or "")) for each in self.names()]
        known += [(entry.hf_repo, entry.names) for entry in self.catalogue]
        return next(
            (repo for repo, ids in known if repo != id and folded in [each.lower() for each in ids]),
            None,
        )

    def manifest(self, repo: str, revision: str) -> Manifest:
        """Resolve `revision` of `repo`: a commit or the beginning of one, a branch, a tag, or HEAD.

        Raises BadName, RevisionUnknown.
        """
        check_revision(revision)
        if COMMIT.fullmatch(revision) and (found := self._commit(repo, revision)):
            return found
        commit = self._ref(repo, MAIN if revision == HEAD else revision)
        if commit is None and is_commit_prefix(revision):
            commit = self._abbreviated(repo, revision)
        found = self._commit(repo, commit) if commit else None
        if found is None:
            raise RevisionUnknown(revision)
        return found

    def _commit(self, repo: str, commit: str) -> Manifest | None:
        document = self.store.get_document(_commit_key(repo, commit))
        return None if document is None else Manifest.model_validate(document)

    def _abbreviated(self, repo: str, prefix: str) -> str | None:
        """The only commit that begins with `prefix`, or None."""
        folder = f"models/{repo_folder(repo)}/commits/"
        commits = [key.removeprefix(folder).removesuffix(".json") for key in self.store.list_documents(folder)]
        matching = [commit for commit in commits if commit.startswith(prefix)]
        return matching[0] if len(matching) == 1 else None

    def refs(self, repo: str) -> dict[str, str]:
        """The branches and tags of `repo`, each with its commit."""
        prefix = f"models/{repo_folder(repo)}/refs/"
        found = {}
        for key in self.store.list_documents(prefix):
            ref = unquote(key.removeprefix(prefix).removesuffix(".json"))
            if commit := self._ref(repo, ref):
                found[ref] = commit
        return found

    def delete(self, name: str, *, spare: Callable[[], set[str]]) -> bool:
        """Delete `name`, its repository if no other name points there, and the blobs that become unreferenced.

        `spare` returns the digests used by running downloads. Returns False for an unknown name. Raises BadName.
        """
        with self.store.exclusive():
            pointer = self.name(name)
            if pointer is None:
                return False
            self.store.delete_document(_name_key(name))
            if any(other.repo == pointer.repo for other in self.names()):
                return True
            self._delete_unreferenced(self._delete_repo(pointer.repo), spare)
        return True

    def delete_unreachable(self, digests: set[str], *, spare: Callable[[], set[str]]) -> None:
        """Delete those of `digests` that neither a model nor `spare` references."""
        with self.store.exclusive():
            self._delete_unreferenced(digests, spare)

    def _delete_unreferenced(self, digests: set[str], spare: Callable[[], set[str]]) -> None:
        for digest in digests - self.reachable_digests() - spare():
            self.store.delete_blob(digest)
            self.store.drop_upload(digest)

    def _delete_repo(self, repo: str) -> set[str]:
        """Delete the documents of `repo`, refs first. Returns the digests of its commits."""
        folder = f"models/{repo_folder(repo)}/"
        for key in self.store.list_documents(folder + "refs/"):
            self.store.delete_document(key)
        commits = self.store.list_documents(folder + "commits/")
        digests = self._digests(commits)
        for key in commits:
            self.store.delete_document(key)
        return digests

    def reachable_digests(self) -> set[str]:
        """The digests of all files of all published commits."""
        return self._digests(key for key in self.store.list_documents("models/") if "/commits/" in key)

    def _digests(self, commit_keys: Iterable[str]) -> set[str]:
        documents = (self.store.get_document(key) for key in commit_keys)
        manifests = (Manifest.model_validate(document) for document in documents if document is not None)
        return {file.sha256 for manifest in manifests for file in manifest.files}

    def _ref(self, repo: str, revision: str) -> str | None:
        document = self.store.get_document(_ref_key(repo, revision))
        return None if document is None else str(document["commit"])


def _commit_key(repo: str, commit: str) -> str:
    return f"models/{repo_folder(repo)}/commits/{commit}.json"


def _ref_key(repo: str, revision: str) -> str:
    return f"models/{repo_folder(repo)}/refs/{quote(revision, safe='')}.json"


def _name_key(name: str) -> str:
    return f"names/{name}.json"
