"""The embedding model in one process, without HTTP: its maximum rate, and reference embeddings.

    python -m bench.peers.embedding_in_process MODEL_FOLDER TEXTS.json

Each line on stdin is a command with one line of JSON as its response: `rate` embeds all texts at several batch sizes
and returns the best rate in texts per second; `reference FILE` writes SentenceTransformer.encode's float32 rows as
.npy.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

BATCH_SIZES = (32, 64, 128)


def main() -> None:
    """Load the engine as the service does, then execute commands until stdin ends."""
    from bench.harness.load import FOLDER
    from kit.config.settings import load_settings
    from services.embedding.engines.engine_selection import open_engine
    from services.embedding.settings import EmbeddingSettings

    folder, texts = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    settings = load_settings(EmbeddingSettings, device="cpu", model_cache=FOLDER / "embedding-cache")
    engine = open_engine(folder, "embedding", settings, lambda *_: None)
    print(json.dumps({"engine": engine.name}), flush=True)
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        if command == "rate":
            answer: Any = {str(size): _rate(engine, texts, size) for size in BATCH_SIZES}
        else:
            answer = _reference(folder, texts, Path(path))
        print(json.dumps(answer), flush=True)


def _rate(engine: Any, texts: list[str], size: int) -> float:
    began = time.perf_counter()
    tokens = sorted(engine.tokenize(texts, prompt=None, cut=engine.max_tokens), key=len)
    for start in range(0, len(tokens), size):
        engine.run(tokens[start : start + size])
    return len(texts) / (time.perf_counter() - began)


def _reference(folder: Path, texts: list[str], path: Path) -> dict[str, list[int]]:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    rows = model.encode(texts, show_progress_bar=False)
    np.save(path, rows.astype(np.float32))
    return {"shape": list(rows.shape)}


if __name__ == "__main__":
    main()
