"""Several short recordings in one batch of the engine, with faster-whisper's pipeline and its public arguments.

The pipeline hears one recording, of which it is told the clips. So the recordings' speech is laid out one after
another, each piece is a clip, and the times tell whose a segment is. Each clip's language is detected by itself.
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

    Sound = NDArray[np.float32]

# Between two clips, so that rounded times never touch the neighbour's.
GAP_S = 0.5
# What Whisper's own rules (and faster-whisper's defaults) take for a failed hearing, to be repeated at a higher
# temperature: text that repeats itself, and text that the model does not believe in.
MAX_COMPRESSED = 2.4
MIN_LOGPROB = -1.0


def hear(
    pipeline: Any, recordings: Sequence["Samples"], options: Options, *, beam_size: int, batch_size: int
) -> list[list[Any] | None]:
    """The segments of each recording, with times that mean nothing; None for one that must be heard by itself.

    `pipeline` is a BatchedInferencePipeline. Recordings are at most 30 s long. Blocks.
    """
    import numpy as np

    sounds = [as_float(samples) for samples in recordings]
    pieces = [(owner, piece) for owner, sound in enumerate(sounds) for piece in _speech(sound, options)]
    heard: list[list[Any] | None] = [[] for _ in recordings]
    if not pieces:
        return heard
    gap = np.zeros(int(GAP_S * RATE), np.float32)
    starts: list[int] = []
    clips = []
    at = 0
    for _owner, piece in pieces:
        starts.append(at)
        clips.append({"start": at / RATE, "end": (at + len(piece)) / RATE})
        at += len(piece) + len(gap)
    segments, _info = pipeline.transcribe(
        np.concatenate([part for _owner, piece in pieces for part in (piece, gap)]),
        task=options.task,
        # Named, or else one language would be detected for all; `multilingual` then detects each clip's.
        language=options.language or "en",
        multilingual=options.language is None,
        clip_timestamps=clips,
        vad_filter=False,
        beam_size=beam_size,
        batch_size=batch_size,
    )
    for segment in segments:
        owner = pieces[bisect_right(starts, int((segment.start + GAP_S / 2) * RATE)) - 1][0]
        failed = segment.compression_ratio > MAX_COMPRESSED or segment.avg_logprob < MIN_LOGPROB
        mine = heard[owner]
        if failed:
            heard[owner] = None
        elif mine is not None:
            mine.append(segment)
    return heard


def _speech(sound: "Sound", options: Options) -> "list[Sound]":
    """What is to be heard of a recording, in pieces that each fit Whisper's window."""
    if not options.vad:
        return [sound]
    from faster_whisper.vad import (  # type: ignore[import-untyped]  # ships no types
        VadOptions,
        collect_chunks,
        get_speech_timestamps,
    )

    found = get_speech_timestamps(sound, VadOptions(max_speech_duration_s=30, min_silence_duration_ms=160))
    if not found:
        return []
    chunks, _where = collect_chunks(sound, found, max_duration=30)
    return list(chunks)
