"""Bundles that would replace a model by an older one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from registry.bundle.importing import import_bundle
from registry.bundle.manifest import MANIFEST, SIGNATURE, BundleError
from registry.download.folder_import import import_folder
from registry.models.library import Library
from tests.registry.bundles import KEY, new_library, quiet, write
from tests.registry.conftest import Run
from tests.support.hub import small_repo

Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Publish a version of a model on the exporting side and export it; return the bundle."""
    origin = new_library(tmp_path / "origin")

    def run(seed: str, *, name: str = "m", repo: str = "o/m", revision: str = "main") -> Path:
        folder = tmp_path / f"repo-{seed}"
        folder = folder if folder.exists() else small_repo(folder, seed=seed)
        import_folder(origin, folder, name=name, repo=repo, revision=revision)
        bundle = tmp_path / f"bundle-{len(list(tmp_path.glob('bundle-*')))}"
        write(origin, bundle, name)
        return bundle

    return run


@pytest.fixture
def there(tmp_path: Path) -> Library:
    """The importing side."""
    return new_library(tmp_path / "there")


def imported(there: Library, bundle: Path, *, allow_older: bool = False) -> None:
    import_bundle(there, bundle, KEY.public, quiet, allow_older=allow_older)


def commit(there: Library, name: str = "m") -> str:
    pointer = there.name(name)
    assert pointer is not None
    assert there.refs(pointer.repo)["main"] == pointer.commit
    return pointer.commit


def test_older_bundle_is_refused(export: Export, tmp_path: Path, registry: Run) -> None:
    """X10: with the reason and exit 1; --allow-older accepts it, and the newer one again without."""
    old, new = export("a"), export("b")
    there, key = tmp_path / "there", KEY.public.text
    assert registry("import", str(new), "--key", key, store=there).returncode == 0
    newest = commit(new_library(there))
    done = registry("import", str(old), "--key", key, store=there)
    assert done.returncode == 1
    assert "has older models than the store (m at " in done.stderr
    assert "--allow-older" in done.stderr
    assert commit(new_library(there)) == newest
    assert registry("import", str(old), "--key", key, "--allow-older", store=there).returncode == 0
    assert commit(new_library(there)) != newest
    assert registry("import", str(new), "--key", key, store=there).returncode == 0
    assert commit(new_library(there)) == newest


def test_same_and_newer_bundles_are_imported(export: Export, there: Library) -> None:
    """Also one that deliberately goes back to an earlier commit, since it was published again."""
    first, second, back = export("a"), export("b"), export("a")
    for bundle in (first, first, second, second, back, back):
        imported(there, bundle)
    with pytest.raises(BundleError, match="older models"):
        imported(there, second)


def test_old_bundle_under_another_name_is_refused(export: Export, there: Library) -> None:
    """It would move `main` of the repository."""
    old, new = export("a", name="other"), export("b")
    imported(there, new)
    with pytest.raises(BundleError, match=r"other at .* in the store at"):
        imported(there, old)


def test_old_bundle_of_another_repository_is_refused(export: Export, there: Library) -> None:
    """It would move the name."""
    old, new = export("a", repo="o/former"), export("b")
    imported(there, new)
    with pytest.raises(BundleError, match="older models"):
        imported(there, old)


def test_replay_of_a_present_commit_does_not_open_the_way_for_older_ones(export: Export, there: Library) -> None:
    """The time of a commit never goes back."""
    first, second, back = export("a"), export("b"), export("a")
    imported(there, second)
    imported(there, back)
    imported(there, first)
    with pytest.raises(BundleError, match="older models"):
        imported(there, second)


def test_tag_beside_a_newer_main_is_imported(export: Export, there: Library) -> None:
    """It moves neither the name nor main."""
    tag, new = export("a", name="tagged", revision="v1"), export("b")
    imported(there, new)
    imported(there, tag)
    assert there.refs("o/m") == {"main": commit(there), "v1": there.manifest("o/m", "v1").commit}


@pytest.mark.parametrize("created", ["9999", "", "2026-11-29", "2026-11-29T00:00:00Z\n"])
def test_invalid_time_is_rejected(export: Export, there: Library, created: str) -> None:
    bundle = export("a")
    data = (bundle / MANIFEST).read_bytes()
    manifest = new_library(bundle.parent / "origin").manifest("o/m", "main")
    data = data.replace(manifest.created.encode(), created.encode("unicode_escape"))
    (bundle / MANIFEST).write_bytes(data)
    (bundle / SIGNATURE).write_bytes(KEY.sign(data, "x"))
    with pytest.raises(BundleError, match="not a time"):
        imported(there, bundle)
