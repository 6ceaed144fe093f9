"""Decoding of untrusted files: common formats, damage, limits, files that name other files."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kit.errors import ApiError, InvalidRequest, PayloadTooLarge
from services.transcription.audio import FORMATS, RATE, as_float, check, decode
from tests.services.transcription.recordings import encoded, silent_video, stretched, tone, wav


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("flac", "flac"),
        ("mp3", "mp3"),
        ("ogg", "libopus"),
        ("webm", "libopus"),  # recorded by browsers
        ("mp4", "aac"),
        ("adts", "aac"),
        ("aiff", "pcm_s16be"),
    ],
)
def test_common_formats_are_decoded(container: str, codec: str) -> None:
    """Stereo at 48 kHz becomes mono at 16 kHz of the same length and volume."""
    file = io.BytesIO(encoded(container, codec, 2.0))
    check(file)
    samples = decode(file, 10)
    assert samples.dtype == np.int16
    assert len(samples) / RATE == pytest.approx(2.0, abs=0.15)
    assert np.sqrt(np.mean(as_float(samples) ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.15)


def test_mono_wav_at_16_khz_is_unchanged() -> None:
    samples = tone(0.5)
    assert np.array_equal(decode(io.BytesIO(wav(samples)), 10), samples)


def test_as_float_scales_a_copy() -> None:
    samples = np.array([-32768, 0, 16384], np.int16)
    assert as_float(samples).tolist() == [-1, 0, 0.5]
    assert samples.tolist() == [-32768, 0, 16384]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_audio"),
        (b"hello, this is no audio" * 100, "invalid_audio"),
        (bytes(range(256)) * 200, "invalid_audio"),
        (b"\x00" * 100_000, "invalid_audio"),
        (b"RIFF\xff\xff\xff\xffWAVE", "invalid_audio"),
        (wav(tone(1.0))[:40], "invalid_audio"),
        (b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"\x55" * 5000, "invalid_audio"),
        (b"fLaC\x00\x00\x00\x22" + b"\xff" * 3000, "audio_too_short"),
        (b"OggS" + b"\xaa" * 5000, "invalid_audio"),
        (wav(tone(0.05)), "audio_too_short"),
        (wav(tone(0)), "audio_too_short"),
        (silent_video(), "no_audio"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:12]),
)
def test_invalid_files_are_rejected(content: bytes, code: str) -> None:
    """The message is ours, not FFmpeg's."""
    with pytest.raises(InvalidRequest) as caught:
        decode(io.BytesIO(content), 10)
    assert caught.value.code == code
    assert "Errno" not in caught.value.message


def test_damaged_recordings_are_decoded_partially() -> None:
    whole = encoded("mp3", "mp3", 4.0)
    middle = len(whole) // 2
    damaged = whole[: middle - 1000] + b"\x00" * 2000 + whole[middle + 1000 :]
    assert 3.0 < len(decode(io.BytesIO(damaged), 10)) / RATE < 4.2
    assert 1.5 < len(decode(io.BytesIO(whole[:middle]), 10)) / RATE < 2.5


@pytest.mark.parametrize("kind", ["hls", "concat", "sdp", "dash"])
def test_files_that_name_other_files_are_rejected(tmp_path: Path, kind: str) -> None:
    """FFmpeg's allow-list rejects playlists and scripts, so that nothing they name is opened."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(tone(1.0)))
    content = {
        "hls": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
        f"<Representation><BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    }[kind]
    with pytest.raises(InvalidRequest):
        decode(io.BytesIO(content.encode()), 10)
    assert kind not in FORMATS.split(",")


@pytest.mark.parametrize("content", [wav(tone(3.0)), encoded("adts", "aac", 3.0), encoded("flac", "flac", 3.0)])
def test_duration_limit_applies_while_decoding(content: bytes) -> None:
    """Whatever the header says."""
    check(io.BytesIO(content))
    with pytest.raises(PayloadTooLarge, match=r"longer than 2 seconds.*MAX_AUDIO_SECONDS") as caught:
        decode(io.BytesIO(content), 2)
    assert caught.value.code == "audio_too_long"


def test_small_file_cannot_exhaust_memory(tmp_path: Path) -> None:
    """Audio at 8 Hz grows two thousand times at 16 kHz."""
    bomb = tmp_path / "bomb.mka"
    bomb.write_bytes(stretched(40_000))
    assert bomb.stat().st_size < 400_000
    program = (
        "import io, resource, sys; import av, numpy; from pathlib import Path;"
        "from services.transcription.audio import check, decode; from kit.errors import PayloadTooLarge;"
        "file = io.BytesIO(Path(sys.argv[1]).read_bytes()); check(file);"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)\n"
        "try: decode(file, 7200)\n"
        "except PayloadTooLarge: print('rejected')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(bomb)], capture_output=True, text=True, check=False)
    assert done.stdout == "rejected\n", done.stderr[-800:]


def test_decoding_uses_two_bytes_per_sample(tmp_path: Path) -> None:
    long = tmp_path / "long.wav"
    long.write_bytes(wav(np.zeros(10 * 60 * RATE, np.int16)))
    program = (
        "import re, sys; import av, numpy; from pathlib import Path; from services.transcription.audio import decode;"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024;"
        "before = peak(); samples = decode(open(sys.argv[1], 'rb'), 7200); print(len(samples), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(long)], capture_output=True, text=True, check=True)
    samples, grown = (int(word) for word in done.stdout.split())
    assert samples == 10 * 60 * RATE
    assert grown < 2.8 * samples


def test_check_rewinds_the_file() -> None:
    file = io.BytesIO(wav(tone(1.0)))
    check(file)
    assert file.tell() == 0
    with pytest.raises(InvalidRequest):
        check(io.BytesIO(b"hello"))


def test_decoding_stops_when_cancelled() -> None:
    calls = iter([False, True])
    with pytest.raises(ApiError):  # decoded too little
        decode(io.BytesIO(wav(tone(5.0))), 10, lambda: True)
    assert len(decode(io.BytesIO(wav(tone(60.0))), 100, lambda: next(calls))) < 60 * RATE
