"""Engine: faster-whisper on CTranslate2, from a folder with a converted Whisper model."""

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.service.service import Report
from services.transcription import short_clip_batching
from services.transcription.audio import RATE, as_float
from services.transcription.engine import WINDOW_S, Info, Options, Segment, Word
from services.transcription.segmentation import MAX_PART_S, SpeechTimes, shift_segment, split_at_silence
from services.transcription.settings import TranscriptionSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from services.transcription.engine import Samples

# OpenAI's API reference for temperature 0: raise it step by step while the result exceeds Whisper's thresholds.
FALLBACK_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

# Longer than a pause inside a word, shorter than one between two phrases.
MIN_SILENCE_MS = 500


def open_engine(folder: Path, settings: TranscriptionSettings, report: Report) -> "WhisperEngine":
    """Load the model in `folder`. Blocks for seconds.

    Raises RuntimeError if files or device are unusable, ImportError if faster-whisper is not installed.
    """
    report(0.1, "importing faster-whisper")
    import ctranslate2  # type: ignore[import-untyped]  # ships no types
    from faster_whisper import WhisperModel  # type: ignore[import-untyped]  # ships no types

    # Three lines per recording, which the access log already covers.
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    missing = [name for name in ("config.json", "model.bin", "tokenizer.json") if not (folder / name).is_file()]
    if missing:  # without tokenizer.json faster-whisper would download one
        raise RuntimeError(
            f"{folder} lacks {', '.join(missing)}; it must contain a Whisper model converted to CTranslate2."
        )
    gpus = ctranslate2.get_cuda_device_count()
    device = settings.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cuda" and not gpus:
        raise RuntimeError(
            f"DEVICE={device}, but CTranslate2 finds no CUDA GPU. Set DEVICE=cpu, or check the NVIDIA driver."
        )
    compute_type: str = settings.compute_type
    if compute_type == "auto":
        # float16 on GPUs since about 2016; int8 is the fastest on a CPU.
        compute_type = "float16" if "float16" in ctranslate2.get_supported_compute_types(kind) else "int8"
    report(0.4, f"loading the weights onto {device} as {compute_type}")
    model = WhisperModel(
        str(folder),
        device=kind,
        device_index=int(index or 0),
        compute_type=compute_type,
        cpu_threads=settings.cpu_threads or _cores(),
        local_files_only=True,
    )
    return WhisperEngine(model, device=device, beam_size=settings.beam_size, batch_size=settings.batch_size)


def _cores() -> int:
    """Return the number of cores available to this process; on macOS, of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WhisperEngine:
    """A loaded Whisper model."""

    name = "faster-whisper"

    def __init__(self, model: Any, *, device: str, beam_size: int, batch_size: int, part_s: float = MAX_PART_S) -> None:
        from faster_whisper import BatchedInferencePipeline

        self._model = model
        self._batched = BatchedInferencePipeline(model)
        self._beam_size = beam_size
        self._batch_size = batch_size
        self._part_s = part_s
        self.device = device
        self.max_batch = batch_size
        self.languages: Sequence[str] = tuple(model.supported_languages)

    def transcribe_batch(self, recordings: "Sequence[Samples]", options: Options) -> list[list[Segment] | None]:
        """See `SpeechEngine.transcribe_batch`."""
        results = short_clip_batching.transcribe_batch(
            self._batched, recordings, options, beam_size=self._beam_size, batch_size=self._batch_size
        )
        return [None if result is None else [_segment(segment) for segment in result] for result in results]

    def transcribe(self, samples: "Samples", options: Options) -> tuple[Info, Iterator[Segment]]:
        """See `SpeechEngine.transcribe`."""
        parts = split_at_silence(samples, self._part_s)
        info, first = self._transcribe_part(samples[slice(*parts[0])], options)
        return Info(info.language, len(samples) / RATE), self._all_segments(samples, parts, first, info, options)

    def _all_segments(
        self, samples: "Samples", parts: list[tuple[int, int]], first: Iterator[Segment], info: Info, options: Options
    ) -> Iterator[Segment]:
        """Yield the segments of all parts. The first part with speech determines the language."""
        count = 0
        segments = first
        for start, stop in parts:
            if start > 0:
                info, segments = self._transcribe_part(samples[start:stop], options)
            for segment in segments:
                yield shift_segment(segment, start / RATE, count)
                count += 1
            if count and options.language is None:
                options = replace(options, language=info.language)

    def _transcribe_part(self, samples: "Samples", options: Options) -> tuple[Info, Iterator[Segment]]:
        arguments: dict[str, Any] = {
            "task": options.task,
            "language": options.language,
            "initial_prompt": options.prompt or None,
            "temperature": options.temperature or FALLBACK_TEMPERATURES,
            "beam_size": self._beam_size,
        }
        audio = as_float(samples)
        is_long = len(samples) > WINDOW_S * RATE
        times: SpeechTimes | None = None
        if is_long and options.text_only and not options.streamed and options.vad and self._batch_size > 1:
            # Text only: with timestamps inside a window, the pipeline drops speech after the last timestamp.
            segments, info = self._batched.transcribe(audio, batch_size=self._batch_size, **arguments)
        elif options.vad:
            times = SpeechTimes(_spoken_intervals(audio), len(audio))
            words = options.words or (times.has_cuts and not options.text_only)
            segments, info = self._model.transcribe(times.speech(audio), word_timestamps=words, **arguments)
        else:
            segments, info = self._model.transcribe(audio, word_timestamps=options.words, **arguments)
        converted = (_segment(segment) for segment in segments)
        restored = converted if times is None else times.restore(converted, self._tokens)
        return Info(info.language, float(info.duration)), restored

    def _tokens(self, text: str) -> Sequence[int]:
        ids: Sequence[int] = self._model.hf_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    async def aclose(self) -> None:
        """Release the weights and their memory."""
        self._model = self._batched = None
        gc.collect()


def _spoken_intervals(audio: "NDArray[np.float32]") -> list[tuple[int, int]]:
    """Return the intervals of speech in samples, as the voice activity detector finds them, without padding."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps  # type: ignore[import-untyped]  # ships no types

    found = get_speech_timestamps(audio, VadOptions(min_silence_duration_ms=MIN_SILENCE_MS, speech_pad_ms=0))
    return [(interval["start"], interval["end"]) for interval in found]


def _segment(segment: Any) -> Segment:
    """Convert faster-whisper's segment; some of its numbers are numpy types, which JSON cannot encode."""
    return Segment(
        id=int(segment.id),
        seek=int(segment.seek),
        start=float(segment.start),
        end=float(segment.end),
        text=segment.text,
        tokens=[int(token) for token in segment.tokens],
        temperature=float(segment.temperature or 0.0),
        avg_logprob=float(segment.avg_logprob),
        compression_ratio=float(segment.compression_ratio),
        no_speech_prob=float(segment.no_speech_prob),
        words=[
            Word(word.word, float(word.start), float(word.end), float(word.probability)) for word in segment.words or ()
        ],
    )
