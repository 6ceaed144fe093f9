"""The registry against its own OpenAPI schema."""

from pathlib import Path

import pytest

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from tests.support.hub import serving_registry, small_repo
from tests.support.schema_fuzz import WITHIN_S, assert_no_server_error

NOBODY = "http://127.0.0.1:9"


@pytest.mark.engines
@pytest.mark.timeout(WITHIN_S)
def test_requests_allowed_by_the_schema_cause_no_500(tmp_path: Path) -> None:
    """With a model in the store and an unreachable Hub, so that downloads fail."""
    folder = small_repo(tmp_path / "repo")
    library = Library(FileStore(tmp_path / "store"), Catalogue([]))
    import_folder(library, folder, name="small", repo="test/small", revision="main")
    with serving_registry(tmp_path / "store", hf_endpoint=NOBODY) as url:
        assert_no_server_error(url, tmp_path)
