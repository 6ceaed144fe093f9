"""The models over a store: publish, find, resolve, delete. The only module that knows the layout of the documents.

`models/<org--name>/commits/<sha>.json` is written first, `models/<org--name>/refs/<revision>.json` and
`names/<name>.json` last: whoever follows a name or a revision finds a commit all of whose blobs are there.
"""

from collections.abc import Callable, Iterable
from urllib.parse import quote, unquote

from kit.config.catalogue import Catalogue
from kit.config.hub_names import COMMIT, BadName, check_name, check_paths, check_repo, check_revision, repo_folder
from registry.models.manifest import FileEntry, Manifest, Name, Source
from registry.models.model_card import Card
from registry.models.quota import Quota
from registry.store.deletion_intents import wait_for_deletions
from registry.store.interface import Store, StoreError
from registry.units import utc_now

MAIN = "main"


class BlobsMissing(StoreError):
    """Files whose blobs are not in the store: they must be put (again) before their commit can be published."""

    def __init__(self, files: list[FileEntry]) -> None:
        super().__init__(f"{len(files)} files are not in the store, first {files[0].path}.")
        self.files = files


class CommitConflict(StoreError):
    """The same commit was published before with other bytes under the same path."""


class RepoUnknown(LookupError):
    """No such repository here."""


class NotInStore(BadName):
    """Models of these names are not here; the message lists those that are."""


class RevisionUnknown(LookupError):
    """The repository is here, this revision of it is not."""


class Library:
    """Reads and writes models in one store. Safe to use from many threads."""

    def __init__(self, store: Store, catalogue: Catalogue, *, quota: int | None = None) -> None:
        """`quota`: the most bytes that all blobs together may take."""
        self.store = store
        self.catalogue = catalogue
        self.quota = Quota(store, quota)

    def publish(
        self, *, name: str, repo: str, revision: str, commit: str, files: Iterable[FileEntry], source: Source,
        card: Card | None = None,
    ) -> Manifest:  # fmt: skip
        """Make the commit loadable: by `name`, as `revision` of `repo`, and by its own id. Its blobs are there already.

        Files that an earlier publication of the same commit brought stay in it. `main` follows every publication but
        that of another branch or tag. Raises BadName, BlobsMissing, CommitConflict, StoreError; then nothing changed.
        """
        check_name(name), check_repo(repo), check_revision(revision)
        with self.store.exclusive():
            merged = self._merged(repo, commit, files)
            self._check_blobs(merged)
            manifest = Manifest(
                repo=repo, commit=commit, files=merged, source=source, created=utc_now(), card=card or Card()
            )
            self._put_manifest(manifest)
            for ref in self._refs_to_move(repo, revision, commit):
                self.store.put_document(_ref_key(repo, ref), {"commit": commit})
            pointer = Name(name=name, repo=repo, revision=revision, commit=commit, updated=utc_now())
            self.store.put_document(_name_key(name), pointer.model_dump())
        return manifest

    def _check_blobs(self, files: Iterable[FileEntry]) -> None:
        missing = [file for file in files if self.store.blob_size(file.sha256) != file.size]
        if missing:
            raise BlobsMissing(missing)

    def _put_manifest(self, manifest: Manifest) -> None:
        """From now on its blobs are no garbage; those that another process deletes just then are told as missing."""
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

    def _merged(self, repo: str, commit: str, files: Iterable[FileEntry]) -> tuple[FileEntry, ...]:
        by_path = {file.path: file for file in files}
        if not by_path:
            raise BadName(f"There is nothing to publish: no file of {repo} is left after choosing.")
        earlier = self.store.get_document(_commit_key(repo, commit))
        for file in Manifest.model_validate(earlier).files if earlier else ():
            if by_path.setdefault(file.path, file).sha256 != file.sha256:
                raise CommitConflict(
                    f"{repo} at {commit} is here already with another {file.path}. "
                    "Delete that model first, or import without --revision."
                )
        check_paths(by_path)
        return tuple(by_path[path] for path in sorted(by_path))

    def _refs_to_move(self, repo: str, revision: str, commit: str) -> list[str]:
        refs = [] if revision == commit else [revision]
        moves_main = revision == MAIN or bool(COMMIT.fullmatch(revision)) or self._ref(repo, MAIN) is None
        return [*refs, MAIN] if moves_main and MAIN not in refs else refs

    def names(self) -> list[Name]:
        """All names, sorted."""
        documents = (self.store.get_document(key) for key in self.store.list_documents("names/"))
        return [Name.model_validate(document) for document in documents if document is not None]

    def named(self, names: Iterable[str]) -> list[Name]:
        """What these names point at, each once, in their order; all there are where none is given.

        Raises NotInStore for those that are not here, BadName.
        """
        known = {pointer.name: pointer for pointer in self.names()}
        wanted = list(dict.fromkeys(self.canonical(name) for name in names)) or list(known)
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise NotInStore(f"Not in the store: {', '.join(unknown)}. What is: {', '.join(known) or 'nothing'}.")
        return [known[name] for name in wanted]

    def name(self, name: str) -> Name | None:
        """What `name` points at; an alias or repository of the catalogue stands for its model. Raises BadName."""
        document = self.store.get_document(_name_key(check_name(name)))
        return None if document is None else Name.model_validate(document)

    def canonical(self, name: str) -> str:
        """The name under which the model called `name` is kept: the catalogue's name for an alias. Raises BadName."""
        entry = self.catalogue.find(name)
        return check_name(entry.name if entry else name)

    def repos(self) -> list[str]:
        """All repositories that have a name pointing at them, sorted."""
        return sorted({name.repo for name in self.names()})

    def find_repo(self, id: str) -> str:
        """The repository that a client means by `id`: itself, or what a name or the catalogue calls so.

        Raises BadName, RepoUnknown.
        """
        check_repo(id)
        if self._has_refs(id):
            return id
        if "/" not in id:
            name = self.name(self.canonical(id))
            if name is not None:
                return name.repo
        entry = self.catalogue.find(id)
        if entry is not None and self._has_refs(entry.hf_repo):
            return entry.hf_repo
        raise RepoUnknown(id)

    def manifest(self, repo: str, revision: str) -> Manifest:
        """The commit that `revision` (a commit, branch or tag) of `repo` is here. Raises BadName, RevisionUnknown."""
        check_revision(revision)
        commit = revision if COMMIT.fullmatch(revision) else None
        document = self.store.get_document(_commit_key(repo, commit)) if commit else None
        if document is None:
            commit = self._ref(repo, revision)
            document = self.store.get_document(_commit_key(repo, commit)) if commit else None
        if document is None:
            raise RevisionUnknown(revision)
        return Manifest.model_validate(document)

    def refs(self, repo: str) -> dict[str, str]:
        """All branches and tags of `repo` here, each with its commit."""
        prefix = f"models/{repo_folder(repo)}/refs/"
        found = {}
        for key in self.store.list_documents(prefix):
            ref = unquote(key.removeprefix(prefix).removesuffix(".json"))
            commit = self._ref(repo, ref)
            if commit is not None:
                found[ref] = commit
        return found

    def delete(self, name: str, *, spare: Callable[[], set[str]]) -> bool:
        """Drop `name`; and its repository when no other name points there; and the blobs that nothing reaches then.

        `spare` tells the digests that running downloads count on. False when there is no such name. Raises BadName.
        """
        with self.store.exclusive():
            pointer = self.name(name)
            if pointer is None:
                return False
            self.store.delete_document(_name_key(name))
            if any(other.repo == pointer.repo for other in self.names()):
                return True
            self._drop_blobs(self._drop_repo(pointer.repo), spare)
        return True

    def delete_unreachable(self, digests: set[str], *, spare: Callable[[], set[str]]) -> None:
        """Remove those of `digests` that no model here reaches, save those that `spare` tells."""
        with self.store.exclusive():
            self._drop_blobs(digests, spare)

    def _drop_blobs(self, digests: set[str], spare: Callable[[], set[str]]) -> None:
        for digest in digests - self.reachable_digests() - spare():
            self.store.delete_blob(digest)
            self.store.drop_upload(digest)

    def _drop_repo(self, repo: str) -> set[str]:
        """Remove the documents of `repo`, refs first. Returns the digests that its commits had."""
        folder = f"models/{repo_folder(repo)}/"
        digests: set[str] = set()
        for key in self.store.list_documents(folder + "refs/"):
            self.store.delete_document(key)
        for key in self.store.list_documents(folder + "commits/"):
            document = self.store.get_document(key)
            if document is not None:
                digests.update(file.sha256 for file in Manifest.model_validate(document).files)
            self.store.delete_document(key)
        return digests

    def reachable_digests(self) -> set[str]:
        """The digests that the models here are made of."""
        reachable_digests: set[str] = set()
        for key in self.store.list_documents("models/"):
            document = self.store.get_document(key) if "/commits/" in key else None
            if document is not None:
                reachable_digests.update(file.sha256 for file in Manifest.model_validate(document).files)
        return reachable_digests

    def _has_refs(self, repo: str) -> bool:
        return self._ref(repo, MAIN) is not None

    def _ref(self, repo: str, revision: str) -> str | None:
        document = self.store.get_document(_ref_key(repo, revision))
        return None if document is None else str(document["commit"])


def _commit_key(repo: str, commit: str) -> str:
    return f"models/{repo_folder(repo)}/commits/{commit}.json"


def _ref_key(repo: str, revision: str) -> str:
    return f"models/{repo_folder(repo)}/refs/{quote(revision, safe='')}.json"


def _name_key(name: str) -> str:
    return f"names/{name}.json"
