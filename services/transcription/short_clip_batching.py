"""Several short recordings in one batch, with the public arguments of faster-whisper's batched pipeline.

The pipeline accepts one recording and a list of clips in it. So the speech of all recordings is concatenated, each
piece is a clip, and a segment's start time shows which recording it belongs to. Languages are detected per clip.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.transcription.audio import RATE, as_float
from services.transcription.engine import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from services.transcription.engine import Samples

    Audio = NDArray[np.float32]

# Silence between two clips, so that rounded times never reach the next clip.
GAP_S = 0.5
# Thresholds of Whisper and faster-whisper beyond which a result counts as failed, and is repeated at a higher
# temperature: repetitive text, and text with a low probability.
MAX_COMPRESSION_RATIO = 2.4
MIN_LOGPROB = -1.0


def transcribe_batch(
    pipeline: Any, recordings: Sequence["Samples"], options: Options, *, beam_size: int, batch_size: int
) -> list[list[Any] | None]:
    """Return each recording's segments, without meaningful times; None if it must be transcribed by itself.

    `pipeline` is a BatchedInferencePipeline; recordings are at most 30 s long. Blocks.
    """
    import numpy as np

    pieces = [
        (index, piece) for index, samples in enumerate(recordings) for piece in _speech(as_float(samples), options)
    ]
    results: list[list[Any] | None] = [[] for _ in recordings]
    if not pieces:
        return results
    gap = np.zeros(int(GAP_S * RATE), np.float32)
    starts: list[int] = []
    clips = []
    offset = 0
    for _, piece in pieces:
        starts.append(offset)
        clips.append({"start": offset / RATE, "end": (offset + len(piece)) / RATE})
        offset += len(piece) + len(gap)
    segments, _info = pipeline.transcribe(
        np.concatenate([part for _, piece in pieces for part in (piece, gap)]),
        task=options.task,
        # Without a language, one would be detected for all clips; `multilingual` detects it per clip.
        language=options.language or "en",
        multilingual=options.language is None,
        clip_timestamps=clips,
        vad_filter=False,
        beam_size=beam_size,
        batch_size=batch_size,
    )
    for segment in segments:
        index = pieces[bisect_right(starts, int((segment.start + GAP_S / 2) * RATE)) - 1][0]
        result = results[index]
        if segment.compression_ratio > MAX_COMPRESSION_RATIO or segment.avg_logprob < MIN_LOGPROB:
            results[index] = None
        elif result is not None:
            result.append(segment)
    return results


def _speech(audio: "Audio", options: Options) -> "list[Audio]":
    """Return the speech of a recording, in pieces that fit Whisper's window."""
    if not options.vad:
        return [audio]
    from faster_whisper.vad import (  # type: ignore[import-untyped]  # ships no types
        VadOptions,
        collect_chunks,
        get_speech_timestamps,
    )

    timestamps = get_speech_timestamps(audio, VadOptions(max_speech_duration_s=30, min_silence_duration_ms=160))
    if not timestamps:
        return []
    chunks, _metadata = collect_chunks(audio, timestamps, max_duration=30)
    return list(chunks)
