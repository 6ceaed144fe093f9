"""`registry check`: models missing in the store, and an implausible clock."""

import datetime
import shutil
from pathlib import Path

import pytest

from kit.config.catalogue import Catalogue, Entry
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from registry.upkeep.readiness import clock, findings
from tests.support.hub import small_repo

NOW = datetime.datetime(2026, 11, 25, 12, 0, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def entry(name: str, **fields: object) -> Entry:
    return Entry.model_validate({"name": name, "kind": "llm", "hf_repo": f"test/{name}", **fields})


@pytest.mark.parametrize(
    ("now", "newest", "status", "says"),
    [
        (NOW, NOW - DAY, "ok", "2026-11-25 12:00 UTC"),
        (NOW, NOW + datetime.timedelta(minutes=1), "ok", "2026-11-25"),
        (NOW - DAY, NOW, "problem", "but a model was published at 2026-11-25 12:00 UTC"),
        (datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC), NOW, "problem", "1970-01-01 00:00 UTC, which cannot"),
        (datetime.datetime(2106, 2, 7, tzinfo=datetime.UTC), NOW, "problem", "which cannot be"),
    ],
)
def test_clock(now: datetime.datetime, newest: datetime.datetime, status: str, says: str) -> None:
    """Before the last publication or in an implausible year: a problem, with the fix."""
    finding = clock(now, newest)
    assert (finding.status, says in finding.detail) == (status, True)
    assert bool(finding.fix) == (status == "problem")


def test_models(tmp_path: Path) -> None:
    """Ready, missing, missing but optional, another revision, a missing blob: each with a fix."""
    library = Library(
        FileStore(tmp_path / "store"),
        Catalogue([entry("a"), entry("b"), entry("c", optional=True), entry("d", revision="v2"), entry("e")]),
    )
    for name in ("a", "d", "e"):
        folder = small_repo(tmp_path / name, seed=name, weights=1000)
        manifest = import_folder(library, folder, name=name, repo=f"test/{name}", revision="main")
    gone = next(file for file in manifest.files if file.path == "model.safetensors")
    library.store.delete_blob(gone.sha256)
    found = {finding.subject: finding for finding in findings(library, datetime.datetime.now(datetime.UTC))}
    assert {subject: finding.status for subject, finding in found.items()} == {
        "clock": "ok",
        "model a": "ok",
        "model b": "problem",
        "model c": "warning",
        "model d": "problem",
        "model e": "problem",
    }
    assert found["model b"].detail == "the catalogue says test/b at main, the registry has nothing"
    assert found["model d"].detail == "the catalogue says test/d at v2, the registry has test/d at main"
    assert found["model e"].detail == "not in the store: model.safetensors"
    assert found["model e"].fix == "Run scripts/offline-setup.sh e with internet."


def test_unreadable_store_is_reported_once(tmp_path: Path) -> None:
    """One finding, not one per model."""
    library = Library(FileStore(tmp_path / "store"), Catalogue([entry("a")]))
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("not a folder any more")
    (only,) = findings(library, NOW)
    assert (only.status, only.subject) == ("problem", "store")
