"""Sound files to samples, through FFmpeg's libraries (PyAV), for files that strangers send.

FFmpeg also reads playlists, concatenation scripts and session descriptions, which name other files and hosts. So the
container formats are an allow-list, and no protocol is allowed beyond the open file itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from kit.errors import InvalidRequest, PayloadTooLarge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from services.transcription.engine import Samples

RATE = 16_000
"""Samples per second that Whisper hears."""
SHORTEST_S = 0.1
"""OpenAI's own lower limit."""

# Containers of recordings and videos, by FFmpeg's names (libavformat's AVInputFormat.name).
FORMATS = (
    "wav,w64,mp3,flac,ogg,mov,mp4,m4a,3gp,3g2,matroska,webm,aac,aiff,au,caf,amr,amrnb,amrwb,asf,avi,flv,mpeg,mpegts"
)
OPEN_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}


def check(file: BinaryIO) -> None:
    """Look at the head of `file` and go back to its start. Blocks for some milliseconds.

    Raises InvalidRequest when it is no recording. How long it is, only decoding tells: headers guess, and lie.
    """
    with _opened(file):
        pass


def decode(file: BinaryIO, max_seconds: int, stopped: Callable[[], bool] = lambda: False) -> "Samples":
    """Decode the first audio stream to mono samples at 16 kHz: 115 MB an hour. Blocks for as long as it takes.

    Ends early once `stopped()`. Raises InvalidRequest when there is no sound in it, PayloadTooLarge when there is more
    than `max_seconds` of it.
    """
    import numpy as np

    whole = bytearray()  # grows in place: pieces put together at the end would take twice the memory
    with _opened(file) as (container, stream):
        for piece in _resampled(container, stream, max_seconds):
            whole += piece.tobytes()
            if stopped():
                break
    samples = np.frombuffer(whole, np.int16)
    if len(samples) < RATE * SHORTEST_S:
        raise InvalidRequest(
            f"The audio has {len(samples) / RATE:.2f} seconds of sound; {SHORTEST_S} is the least. "
            "Check the recording.",
            param="file",
            code="audio_too_short",
        )
    return samples


def as_float(samples: "Samples") -> "NDArray[np.float32]":
    """The same, from -1 to 1, as Whisper takes it."""
    import numpy as np

    floats = samples.astype(np.float32)
    floats /= 32768.0
    return floats


@contextmanager
def _opened(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """Open the container; on leaving, turn FFmpeg's errors into ours and go back to the file's start."""
    import av

    file.seek(0)
    try:
        with av.open(file, mode="r", metadata_errors="ignore", container_options=OPEN_OPTIONS) as container:
            if not container.streams.audio:
                raise InvalidRequest("The file has no audio stream.", param="file", code="no_audio")
            yield container, container.streams.audio[0]
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        raise InvalidRequest(
            "The file is not audio that can be decoded. Send wav, mp3, flac, ogg, m4a, mp4, webm or another usual "
            "format, whole and with its own header.",
            param="file",
            code="invalid_audio",
        ) from error
    finally:
        file.seek(0)


def _resampled(container: Any, stream: Any, max_seconds: int) -> Iterator[Any]:
    """Pieces of int16 samples. A damaged packet is left out, as players do; a damaged end ends the recording.

    Raises PayloadTooLarge before it computes what is more than `max_seconds`: at some samples a second, one packet of
    a few kB may hold days.
    """
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    packets = container.demux(stream)
    heard = 0
    while True:
        try:
            packet = next(packets, None)
        except av.error.InvalidDataError:
            packet = None
        if packet is None:
            break
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        for frame in frames:
            heard += frame.samples * RATE // max(frame.sample_rate, 1)
            if heard > max_seconds * RATE:
                raise _too_long(max_seconds)
            frame.pts = None  # damaged recordings have times that go backwards; the order of frames is enough
            yield from (resampled.to_ndarray()[0] for resampled in resampler.resample(frame))
    yield from (resampled.to_ndarray()[0] for resampled in resampler.resample(None))


def _too_long(max_seconds: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The recording is longer than {max_seconds} seconds. Send it in parts, or raise MAX_AUDIO_SECONDS.",
        param="file",
        code="audio_too_long",
    )
