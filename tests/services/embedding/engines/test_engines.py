"""The engines with the real all-MiniLM-L6-v2: same results as sentence-transformers, for any batching."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from openai import OpenAI

from kit.config.settings import load_settings
from services.embedding.engines.engine_selection import open_engine
from services.embedding.engines.interface import Tokens
from services.embedding.settings import EmbeddingSettings
from tests.services.fake_service import Start
from tests.support import models

pytestmark = pytest.mark.engines

TEXTS = [
    "The cat sits on the mat.",
    "A kitten is resting on a rug.",
    "Interest rates rose by half a percent in the third quarter.",
    "x",
    "Ünïcödé, 日本語 and 🎉 in one line",
    " ".join(["A long story about a river that runs to the sea."] * 15),
    *(f"Sentence number {n} " + "with more and more words " * n for n in range(12)),
]

# Settings of an engine, its name, and the minimum cosine to PyTorch's embeddings in float32.
ENGINES = {
    "torch": ({"engine": "torch"}, "sentence-transformers", 0.99999),
    "openvino-f32": ({"engine": "openvino", "dtype": "float32"}, "openvino-f32", 0.99999),
    "openvino-bf16": ({"engine": "openvino", "dtype": "bfloat16"}, "openvino-bf16", 0.9995),
}


def load(folder: Path, cache: Path, kind: Any = "embedding", **settings: Any) -> Any:
    settings = {"engine": "torch", "device": "cpu", "model_cache": cache, **settings}
    return open_engine(folder, kind, load_settings(EmbeddingSettings, **settings), lambda *_: None)


@pytest.fixture(scope="module")
def minilm() -> Path:
    return models.folder("minilm")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=ENGINES)
def choice(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def near(choice: str) -> float:
    return ENGINES[choice][2]


@pytest.fixture(scope="module")
def engine(minilm: Path, cache: Path, choice: str) -> Any:
    return load(minilm, cache, **ENGINES[choice][0])


@pytest.fixture(scope="module")
def tokens(engine: Any) -> list[Tokens]:
    tokens: list[Tokens] = engine.tokenize(TEXTS, prompt=None, truncate_to=engine.max_tokens)
    return tokens


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    product: NDArray[np.float32] = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return product


def test_selected_engine_runs(engine: Any, choice: str) -> None:
    assert engine.name == ENGINES[choice][1]


def test_embeddings_equal_sentence_transformers(minilm: Path, engine: Any, tokens: list[Tokens], near: float) -> None:
    """Pooling, normalisation and truncation included."""
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS, show_progress_bar=False)
    rows = engine.run(tokens)
    assert rows.shape == (len(TEXTS), 384)
    assert cosines(rows, reference).min() >= near
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_embeddings_are_independent_of_the_batch(engine: Any, tokens: list[Tokens], near: float) -> None:
    alone = np.concatenate([engine.run([item]) for item in tokens])
    together = engine.run(tokens)
    backwards = engine.run(tokens[::-1])[::-1]
    pairs = np.concatenate([engine.run(tokens[n : n + 2]) for n in range(0, len(tokens), 2)])
    for other in (together, backwards, pairs):
        assert cosines(alone, other).min() >= near


def test_limits_come_from_the_model_files(engine: Any) -> None:
    assert (engine.max_tokens, engine.dimensions, engine.vocabulary) == (256, 384, 30522)
    [long] = engine.tokenize(["word " * 400], prompt=None, truncate_to=None)
    assert len(long) == 402
    [truncate_to] = engine.tokenize(["word " * 400], prompt=None, truncate_to=256)
    assert len(truncate_to) == 256
    assert truncate_to.ids[-1] == long.ids[-1]  # truncation keeps the closing token
    assert engine.special_tokens == ([101], [102])


def test_prompts_are_prepended_and_excluded_from_pooling(minilm: Path, tmp_path: Path) -> None:
    """Excluded if the model's configuration says so."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu", prompts={"query": "search for: "})
    model.set_pooling_include_prompt(False)
    model.save(str(tmp_path))
    engine = load(tmp_path, tmp_path / "cache")
    assert list(engine.prompts) == ["query"]
    [plain] = engine.tokenize(["a cat"], prompt=None, truncate_to=None)
    [prompted] = engine.tokenize(["a cat"], prompt="query", truncate_to=None)
    reference = model.encode(["a cat"], prompt_name="query", show_progress_bar=False)
    rows = engine.run([plain, prompted, plain])
    assert cosines(rows[1:2], reference).min() >= 0.99999
    assert cosines(rows[:1], rows[2:]).min() >= 0.99999
    assert cosines(rows[:1], rows[1:2]).max() < 0.999


@pytest.fixture(scope="module")
def cross_encoder(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with random weights and MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross-encoder")
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 1}
    config = BertConfig(vocab_size=30522, intermediate_size=64, **sizes)
    model: Any = BertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data.mul_(5)  # otherwise every pair gets the same score
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    return folder


def test_scores_equal_sentence_transformers(cross_encoder: Path, cache: Path, choice: str) -> None:
    """Segment ids and activation included."""
    from sentence_transformers import CrossEncoder

    pairs = [("a cat", text) for text in TEXTS]
    reference = CrossEncoder(str(cross_encoder), device="cpu").predict(pairs, show_progress_bar=False)
    engine = load(cross_encoder, cache, "reranker", **ENGINES[choice][0])
    rows = engine.run(engine.tokenize(pairs, prompt=None, truncate_to=engine.max_tokens))
    assert rows.shape == (len(pairs), 1)
    assert np.ptp(reference) > 1e-3
    assert np.abs(rows[:, 0] - reference).max() < 1e-5


def test_documents_are_truncated_before_they_are_paired(cross_encoder: Path, cache: Path, choice: str) -> None:
    """To whole tokens of the text; the query and short documents are unchanged."""
    engine = load(cross_encoder, cache, "reranker", **ENGINES[choice][0])
    cut, short, limit = engine.tokenize(
        [("a cat", "Unbelievable storms by the river"), ("a cat", "a dog"), ("a cat", "word " * 2000)],
        prompt=None,
        truncate_to=engine.max_tokens,
        document_tokens=3,
    )
    expected = engine.tokenize(
        [("a cat", "Unbelievable storms by"), ("a cat", "a dog"), ("a cat", "word word word")],
        prompt=None,
        truncate_to=engine.max_tokens,
    )
    assert [cut.ids, short.ids, limit.ids] == [item.ids for item in expected]


def test_reranker_over_http(cross_encoder: Path, start: Start) -> None:
    with start(None, kind="reranker", open_engine=open_engine, model_dir=cross_encoder) as client:
        answer = client.post("/v1/rerank", json={"query": "a cat", "documents": TEXTS, "truncate": True}).json()
    assert sorted(item["index"] for item in answer["results"]) == list(range(len(TEXTS)))


@pytest.fixture(scope="module")
def openai(module_start: Start, minilm: Path) -> Iterator[OpenAI]:
    with (
        module_start(None, open_engine=open_engine, model_dir=minilm) as client,
        OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as openai,
    ):
        yield openai


def test_related_sentences_are_closer(openai: OpenAI) -> None:
    """With the OpenAI client; embeddings have 384 numbers and length 1."""
    answer = openai.embeddings.create(model="tiny", input=TEXTS[:3])
    cat, kitten, rates = (np.array(item.embedding) for item in answer.data)
    assert cat.shape == (384,)
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ rates + 0.3
    assert answer.usage.prompt_tokens == 9 + 9 + 15


def test_dimensions_and_encodings(openai: OpenAI) -> None:
    """Shortened embeddings have length 1; floats and base64 agree."""
    coded = openai.embeddings.create(model="tiny", input="a cat", dimensions=64).data[0].embedding
    plain = openai.embeddings.create(model="tiny", input="a cat", dimensions=64, encoding_format="float")
    assert len(coded) == 64
    assert np.linalg.norm(coded) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(np.array(coded, np.float32), np.array(plain.data[0].embedding, np.float32))
