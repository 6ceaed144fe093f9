"""Decoding of untrusted audio files with FFmpeg's libraries (PyAV).

FFmpeg also reads playlists, concatenation scripts and session descriptions, which name other files and hosts. So only
listed container formats are allowed, and no protocol except the open file itself.
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
"""Sample rate of Whisper's input, in Hz."""
MIN_AUDIO_S = 0.1
"""Minimum length of a recording, as in OpenAI's API."""

# Names of libavformat's AVInputFormat.
FORMATS = (
    "wav,w64,mp3,flac,ogg,mov,mp4,m4a,3gp,3g2,matroska,webm,aac,aiff,au,caf,amr,amrnb,amrwb,asf,avi,flv,mpeg,mpegts"
)
CONTAINER_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}


def check(file: BinaryIO) -> None:
    """Check that `file` has a decodable header. Blocks for some milliseconds. Raises InvalidRequest if not.

    The duration in a header is not reliable; `decode` limits it.
    """
    with _opened(file):
        pass


def decode(file: BinaryIO, max_seconds: int, is_cancelled: Callable[[], bool] = lambda: False) -> "Samples":
    """Decode the first audio stream to mono samples at 16 kHz, 115 MB per hour. Blocks.

    Stops early once `is_cancelled()`. Raises InvalidRequest if it is too short, PayloadTooLarge if it is longer than
    `max_seconds`.
    """
    import numpy as np

    buffer = bytearray()  # grows in place; joining pieces at the end would take twice the memory
    with _opened(file) as (container, stream):
        for piece in _resampled(container, stream, max_seconds):
            buffer += piece.tobytes()
            if is_cancelled():
                break
    samples = np.frombuffer(buffer, np.int16)
    if len(samples) < RATE * MIN_AUDIO_S:
        raise InvalidRequest(
            f"The recording has {len(samples) / RATE:.2f} seconds of audio; the minimum is {MIN_AUDIO_S} seconds.",
            param="file",
            code="audio_too_short",
        )
    return samples


def as_float(samples: "Samples") -> "NDArray[np.float32]":
    """Return samples as floats from -1 to 1, Whisper's input."""
    import numpy as np

    floats = samples.astype(np.float32)
    floats /= 32768.0
    return floats


@contextmanager
def _opened(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """Open the container and its audio stream; convert FFmpeg's errors, and rewind the file at the end."""
    import av

    file.seek(0)
    try:
        with av.open(file, mode="r", metadata_errors="ignore", container_options=CONTAINER_OPTIONS) as container:
            if not container.streams.audio:
                raise InvalidRequest("The file has no audio stream.", param="file", code="no_audio")
            yield container, container.streams.audio[0]
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        raise InvalidRequest(
            "The file could not be decoded as audio. Send a complete file in a common format, such as wav, mp3, flac, "
            "ogg, m4a, mp4 or webm.",
            param="file",
            code="invalid_audio",
        ) from error
    finally:
        file.seek(0)


def _resampled(container: Any, stream: Any, max_seconds: int) -> Iterator[Any]:
    """Yield int16 samples. Damaged packets are skipped, as in players; a damaged end ends the recording.

    Raises PayloadTooLarge before resampling more than `max_seconds`: at a very low sample rate, a packet of a few kB
    can hold days.
    """
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    packets = container.demux(stream)
    total = 0
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
            total += frame.samples * RATE // max(frame.sample_rate, 1)
            if total > max_seconds * RATE:
                raise PayloadTooLarge(
                    f"The recording is longer than {max_seconds} seconds (MAX_AUDIO_SECONDS). Split it.",
                    param="file",
                    code="audio_too_long",
                )
            frame.pts = None  # damaged files have timestamps that go backwards; the order of frames is enough
            yield from (resampled.to_ndarray()[0] for resampled in resampler.resample(frame))
    yield from (resampled.to_ndarray()[0] for resampled in resampler.resample(None))
