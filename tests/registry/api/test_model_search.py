"""Metadata of models and the filters of their list, with the Hub's own client."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from tests.support import plain_http
from tests.support.hub import serving_registry

CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
language: [en]
tags: [chat, date-is-not-a-string]
released: 2024-10-31
widget:
- messages: [{role: user, content: "\\ud800"}]
---
# Chat, see https://arxiv.org/abs/2502.02737
"""
CHAT = {"README.md": CARD, "config.json": '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'}
EMBEDDING = {"modules.json": "[]", "config.json": '{"architectures": ["BertModel"], "model_type": "bert"}'}
# Two levels of aliases that stand for 10^12 values, and a configuration deeper than the parser goes.
BOMB = "---\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'x'] * 10)}]\n" for n in range(12)) + "---\n"
HOSTILE = {"README.md": BOMB, "config.json": "[" * 300 + "]" * 300}
REPOS = {"org/chat": CHAT, "org/embedding": EMBEDDING, "other/hostile": HOSTILE, "other/plain": {"a.txt": "x"}}


@dataclass
class Served:
    url: str
    store: FileStore


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A registry with four models, for all tests of this module: they only read."""
    home = tmp_path_factory.mktemp("models")
    store = FileStore(home / "store")
    for repo, files in REPOS.items():
        folder = home / repo
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        import_folder(Library(store, Catalogue([])), folder, name=f"my-{folder.name}", repo=repo, revision="main")
    with serving_registry(home / "store") as url:
        yield Served(url, store)


@pytest.fixture
def api(served: Served) -> HfApi:
    return HfApi(endpoint=served.url, token=False)


def test_model_info_has_the_cards_metadata(api: HfApi) -> None:
    """As huggingface_hub parses it."""
    info = api.model_info("org/chat")
    assert (info.pipeline_tag, info.library_name) == ("text-generation", "transformers")
    assert info.tags is not None
    assert {"chat", "en", "license:apache-2.0", "llama", "arxiv:2502.02737"} <= set(info.tags)
    assert info.card_data is not None
    assert (info.card_data.license, info.card_data["released"]) == ("apache-2.0", "2024-10-31")
    assert info.config == {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    for repo in ("other/hostile", "other/plain"):
        bare = api.model_info(repo)
        assert (bare.pipeline_tag, bare.library_name, bare.tags, bare.config) == (None, None, [], {})


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, [*REPOS]),
        ({"pipeline_tag": "text-generation"}, ["org/chat"]),
        ({"pipeline_tag": "sentence-similarity"}, ["org/embedding"]),
        ({"pipeline_tag": "text-to-image"}, []),
        ({"filter": "transformers"}, ["org/chat"]),
        ({"filter": ["chat", "license:apache-2.0", "en"]}, ["org/chat"]),
        ({"filter": ["chat", "bert"]}, []),
        ({"filter": "sentence-transformers"}, ["org/embedding"]),
        ({"search": "EMBED"}, ["org/embedding"]),
        ({"author": "org"}, ["org/chat", "org/embedding"]),
        ({"author": "or"}, []),
        ({"author": "org", "pipeline_tag": "text-generation", "filter": "llama"}, ["org/chat"]),
        ({"trained_dataset": "imdb"}, []),
        ({"gated": True}, []),
        ({"gated": False}, [*REPOS]),
        ({"inference_provider": "all"}, []),
        ({"inference": "warm"}, []),
        ({"sort": "created_at"}, [*reversed(REPOS)]),
        ({"sort": "last_modified", "limit": 1}, ["other/plain"]),
        ({"sort": "downloads"}, [*REPOS]),
    ],
)
def test_list_models_answers_from_the_metadata(api: HfApi, filters: dict[str, Any], found: list[str]) -> None:
    """A filter that nothing here can match gives no model, never all of them."""
    assert [model.id for model in api.list_models(**filters)] == found


@pytest.mark.parametrize("filters", [{"apps": "ollama"}, {"num_parameters": "min:6B"}])
def test_filters_without_an_answer_are_refused(api: HfApi, filters: dict[str, Any]) -> None:
    """Which applications run a model, and how large it is, is not known here."""
    with pytest.raises(HfHubHTTPError, match="Bad request"):
        list(api.list_models(**filters))


def test_details_are_listed_when_requested(api: HfApi) -> None:
    for given in ({"cardData": True}, {"full": True}, {"fetch_config": True}, {"expand": ["cardData", "siblings"]}):
        (model,) = api.list_models(search="chat", **given)
        assert model.card_data is not None
        assert model.config is not None
        assert model.siblings is not None
    (model,) = api.list_models(search="chat")
    assert (model.card_data, model.siblings, model.pipeline_tag) == (None, None, "text-generation")


def test_a_damaged_card_costs_only_its_metadata(api: HfApi, served: Served) -> None:
    """The files of the model are served; `verify` reports the damage."""
    file = plain_http.get(f"{served.url}/models/my-embedding").json()["files"][0]
    with serving_registry(Path(served.store.where.removeprefix("file:"))) as fresh:  # nothing cached
        blob = served.store.local_path(file["sha256"])
        assert blob is not None
        content = blob.read_bytes()
        blob.unlink()
        try:
            info = HfApi(endpoint=fresh, token=False).model_info("org/embedding")
        finally:
            blob.write_bytes(content)
    assert (info.library_name, info.config) == ("sentence-transformers", {})


@pytest.mark.engines
def test_transformers_infers_the_task(served: Served) -> None:
    """`pipeline(model=...)` without a task asks the Hub for it."""
    code = "import json; from transformers.pipelines import get_task; print(json.dumps(get_task('org/chat')))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HF_ENDPOINT": served.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == "text-generation"
