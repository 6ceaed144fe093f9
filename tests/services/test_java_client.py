"""The JDK's HttpClient straight to services and registry: its `Upgrade: h2c` is ignored, its bodies arrive."""

import hashlib
from pathlib import Path

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from services.embedding.app import create_app as create_embedding
from services.embedding.settings import EmbeddingSettings
from services.transcription.app import create_app as create_transcription
from services.transcription.settings import TranscriptionSettings
from tests.services.embedding.fake_engine import FakeEngine as FakeEmbedding
from tests.services.fake_service import serve_fake
from tests.services.transcription.fake_engine import FakeEngine as FakeSpeech
from tests.support.clients.java import needs_java, ok, run_flows
from tests.support.hub import serving_registry, small_repo


@needs_java
async def test_flows(tmp_path: Path) -> None:
    """Embeddings with a length and chunked, a form with and without 100-continue, JSON and a file of the registry."""
    repo = small_repo(tmp_path / "repo")
    import_folder(
        Library(FileStore(tmp_path / "store"), Catalogue([])), repo, name="small", repo="test/small", revision="main"
    )
    folders = tmp_path / "embedding", tmp_path / "speech"
    for folder in folders:
        folder.mkdir()
    with (
        serve_fake(create_embedding, EmbeddingSettings, folders[0], FakeEmbedding(), kind="embedding") as client,
        serve_fake(
            create_transcription, TranscriptionSettings, folders[1], FakeSpeech(), kind="transcription"
        ) as speech_client,
        serving_registry(tmp_path / "store") as registry,
    ):
        embedding, speech = str(client.base_url), str(speech_client.base_url)
        found = await run_flows(
            head=embedding, models=embedding, embeddings=embedding, chunked=embedding,
            transcription=speech, expect=speech, paths_info=registry, download=registry,
        )  # fmt: skip
    assert found["head"] == (200, "")
    assert "tiny" in {model["id"] for model in ok(found, "models")["data"]}
    assert len(ok(found, "embeddings")["data"][0]["embedding"]) == 8
    assert ok(found, "embeddings")["data"] == ok(found, "chunked")["data"]
    assert ok(found, "transcription") == ok(found, "expect")
    assert [file["path"] for file in ok(found, "paths-info")] == ["config.json"]
    digest = hashlib.sha256((repo / "model.safetensors").read_bytes()).hexdigest()
    assert found["download"] == (200, digest)
