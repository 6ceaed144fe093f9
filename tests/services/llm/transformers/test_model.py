"""Sampling defaults from a model's folder."""

import json
from pathlib import Path

from services.llm.transformers.model import sampling_defaults
from services.llm.validation.options import Sampling


def test_catalogue_overrides_generation_config(tmp_path: Path) -> None:
    """Only sampling options are read; `override_generation_config` has vLLM's meaning."""
    assert sampling_defaults(tmp_path, {}) == Sampling()
    given = {"temperature": 0.6, "top_k": 20, "eos_token_id": 2, "top_p": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    assert sampling_defaults(tmp_path, {}) == Sampling(temperature=0.6, top_k=20)
    assert sampling_defaults(tmp_path, {"temperature": 0.2}) == Sampling(temperature=0.2, top_k=20)
