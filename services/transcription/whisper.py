"""The engine: faster-whisper on CTranslate2, from a folder of converted Whisper files."""

import gc
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.service.service import Report
from services.transcription import short_clip_batching
from services.transcription.audio import RATE, as_float
from services.transcription.engine import WINDOW_S, Info, Options, Segment, Word
from services.transcription.segmentation import PART_S, moved, parts
from services.transcription.settings import ComputeType

if TYPE_CHECKING:
    from services.transcription.engine import Samples

# OpenAI's rule for temperature 0: raise it step by step where the answer looks wrong (see the API's reference).
FALLBACK_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def open_engine(
    folder: Path,
    *,
    device: str,
    compute_type: ComputeType,
    cpu_threads: int,
    beam_size: int,
    batch_size: int,
    report: Report,
) -> "WhisperEngine":
    """Load the model in `folder`; blocks for seconds.

    Raises RuntimeError that says what is wrong with the files or the device, and ImportError without the engine.
    """
    report(0.1, "importing faster-whisper")
    import ctranslate2  # type: ignore[import-untyped]  # ships no types
    from faster_whisper import WhisperModel  # type: ignore[import-untyped]  # ships no types

    # It writes three lines per recording; the access log already has one.
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    missing = [name for name in ("config.json", "model.bin", "tokenizer.json") if not (folder / name).is_file()]
    if missing:  # without its tokenizer faster-whisper would ask the internet for one
        raise RuntimeError(f"{folder} lacks {', '.join(missing)}; it must hold a Whisper converted to CTranslate2.")
    gpus = ctranslate2.get_cuda_device_count()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cuda" and not gpus:
        raise RuntimeError(f"DEVICE={device}, but CTranslate2 finds no CUDA GPU. Set DEVICE=cpu, or check the driver.")
    chosen = _compute_type(ctranslate2.get_supported_compute_types(kind)) if compute_type == "auto" else compute_type
    report(0.4, f"loading the weights onto {device} as {chosen}")
    model = WhisperModel(
        str(folder),
        device=kind,
        device_index=int(index or 0),
        compute_type=chosen,
        cpu_threads=cpu_threads or _cores(),
        local_files_only=True,
    )
    return WhisperEngine(model, device=device, beam_size=beam_size, batch_size=batch_size)


def _compute_type(supported: Iterable[str]) -> str:
    """float16 where the device computes in it (GPUs since 2016 or so), else int8, which is the fastest on a CPU."""
    return "float16" if "float16" in supported else "int8"


def _cores() -> int:
    """The cores this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WhisperEngine:
    """A loaded Whisper."""

    name = "faster-whisper"

    def __init__(self, model: Any, *, device: str, beam_size: int, batch_size: int, part_s: float = PART_S) -> None:
        from faster_whisper import BatchedInferencePipeline

        self._model = model
        self._batched = BatchedInferencePipeline(model)
        self._beam_size = beam_size
        self._batch_size = batch_size
        self._part_s = part_s
        self.device = device
        self.most_together = batch_size
        self.languages: Sequence[str] = tuple(model.supported_languages)

    def together(self, recordings: "Sequence[Samples]", options: Options) -> list[list[Segment] | None]:
        """See `SpeechEngine.together`."""
        heard = short_clip_batching.hear(
            self._batched, recordings, options, beam_size=self._beam_size, batch_size=self._batch_size
        )
        return [None if found is None else [_segment(segment) for segment in found] for found in heard]

    def transcribe(self, samples: "Samples", options: Options) -> tuple[Info, Iterator[Segment]]:
        """See `SpeechEngine.transcribe`."""
        cuts = parts(samples, self._part_s)
        info, first = self._hear(samples[slice(*cuts[0])], options)
        return Info(info.language, len(samples) / RATE), self._whole(samples, cuts, first, info, options)

    def _whole(
        self, samples: "Samples", cuts: list[tuple[int, int]], first: Iterator[Segment], info: Info, options: Options
    ) -> Iterator[Segment]:
        """The segments of all parts. The first part in which anything is said decides on the language."""
        count = 0
        heard = first
        for start, stop in cuts:
            if start > 0:
                info, heard = self._hear(samples[start:stop], options)
            for segment in heard:
                yield moved(segment, start / RATE, count)
                count += 1
            if count and options.language is None:
                options = replace(options, language=info.language)

    def _hear(self, samples: "Samples", options: Options) -> tuple[Info, Iterator[Segment]]:
        arguments: dict[str, Any] = {
            "task": options.task,
            "language": options.language,
            "initial_prompt": options.prompt or None,
            "temperature": options.temperature or FALLBACK_TEMPERATURES,
            "word_timestamps": options.words,
            "vad_filter": options.vad,
            "beam_size": self._beam_size,
        }
        sound = as_float(samples)
        long = len(samples) > WINDOW_S * RATE
        if long and options.coarse and options.vad and self._batch_size > 1:
            # Coarse only: asked for timestamps inside a window, the pipeline drops what was said after the last one.
            segments, info = self._batched.transcribe(sound, batch_size=self._batch_size, **arguments)
        else:
            segments, info = self._model.transcribe(sound, **arguments)
        return Info(info.language, float(info.duration)), (_segment(segment) for segment in segments)

    async def aclose(self) -> None:
        """Drop the weights and give the memory back."""
        self._model = self._batched = None
        gc.collect()


def _segment(segment: Any) -> Segment:
    """Copy faster-whisper's segment; its numbers are partly numpy's, which JSON does not know."""
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
