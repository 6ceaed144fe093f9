"""Generated recordings: tones, silence, and files in common formats."""

import io
import wave
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


def tone(seconds: float, *, rate: int = 16_000, volume: float = 0.3) -> NDArray[np.int16]:
    """Return a tone of 440 Hz as int16 samples."""
    times = np.arange(int(seconds * rate)) / rate
    samples: NDArray[np.int16] = (np.sin(2 * np.pi * 440 * times) * volume * 32767).astype("<i2")
    return samples


def wav(samples: NDArray[np.int16], *, rate: int = 16_000, channels: int = 1) -> bytes:
    """Return a WAV file of int16 samples, interleaved if there are several channels."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def encoded(container: str, codec: str, seconds: float, *, rate: int = 48_000) -> bytes:
    """Return a stereo tone encoded with `codec` in `container`."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        samples = np.repeat(tone(seconds, rate=rate), 2).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = 0
        resampler = av.AudioResampler(
            format=stream.format.name, layout="stereo", rate=rate, frame_size=stream.frame_size
        )
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def silent_video(seconds: int = 1) -> bytes:
    """Return an MP4 with video and no audio."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(5 * seconds):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def stretched(seconds: int, *, rate: int = 8) -> bytes:
    """Return a Matroska file with a few bytes per second, in one packet."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream("pcm_u8", rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, seconds * rate), np.uint8), format="u8", layout="mono")
        frame.sample_rate = rate
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
