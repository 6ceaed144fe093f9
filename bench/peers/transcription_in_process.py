"""faster-whisper in one process, without HTTP: its batched pipeline and its sequential mode.

    python -m bench.peers.transcription_in_process MODEL_FOLDER

Each line on stdin is a JSON list: `batched` or `sequential`, then paths of recordings. The response is one line of
JSON, `{"seconds": ..., "texts": [...]}`. int8, beam size 5, batch size 8: the best settings on a CPU.
"""

import json
import sys
import time
from typing import Any

BATCH_SIZE = 8
BEAM_SIZE = 5


def main() -> None:
    """Load the model, then execute commands until stdin ends."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel, decode_audio  # type: ignore[import-untyped]

    model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", local_files_only=True)
    batched = BatchedInferencePipeline(model)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        mode, *paths = json.loads(line)
        began = time.perf_counter()
        texts = []
        for path in paths:
            options: dict[str, Any] = {"beam_size": BEAM_SIZE, "vad_filter": True}
            if mode == "batched":
                segments, _info = batched.transcribe(decode_audio(path), batch_size=BATCH_SIZE, **options)
            else:
                segments, _info = model.transcribe(decode_audio(path), **options)
            texts.append("".join(segment.text for segment in segments))
        print(json.dumps({"seconds": time.perf_counter() - began, "texts": texts}), flush=True)


if __name__ == "__main__":
    main()
