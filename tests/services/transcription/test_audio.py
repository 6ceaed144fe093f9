"""Decoding what strangers send: the usual formats, damage, limits, and files that name other files."""

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
        ("webm", "libopus"),  # what browsers' microphones send
        ("mp4", "aac"),
        ("adts", "aac"),
        ("aiff", "pcm_s16be"),
    ],
)
def test_usual_formats(container: str, codec: str) -> None:
    """Stereo at 48 kHz comes out as mono at 16 kHz, as long and about as loud as it went in."""
    file = io.BytesIO(encoded(container, codec, 2.0))
    check(file)
    samples = decode(file, 10)
    assert samples.dtype == np.int16
    assert len(samples) / RATE == pytest.approx(2.0, abs=0.15)
    assert np.sqrt(np.mean(as_float(samples) ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.15)


def test_wav_is_exact() -> None:
    """What is mono at 16 kHz already is not changed."""
    samples = tone(0.5)
    assert np.array_equal(decode(io.BytesIO(wav(samples)), 10), samples)


def test_as_float() -> None:
    """The loudest is 1, and what was decoded stays as it is."""
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
def test_garbage(content: bytes, code: str) -> None:
    """What is no recording is refused with a code of its own, never with FFmpeg's own words."""
    with pytest.raises(InvalidRequest) as caught:
        decode(io.BytesIO(content), 10)
    assert caught.value.code == code
    assert "Errno" not in caught.value.message


def test_damage_in_the_middle() -> None:
    """A damaged recording is heard as far as it goes, as players do."""
    whole = encoded("mp3", "mp3", 4.0)
    middle = len(whole) // 2
    damaged = whole[: middle - 1000] + b"\x00" * 2000 + whole[middle + 1000 :]
    assert 3.0 < len(decode(io.BytesIO(damaged), 10)) / RATE < 4.2
    assert 1.5 < len(decode(io.BytesIO(whole[:middle]), 10)) / RATE < 2.5


@pytest.mark.parametrize("kind", ["hls", "concat", "sdp", "dash"])
def test_files_that_name_others(tmp_path: Path, kind: str) -> None:
    """Playlists and scripts are refused by FFmpeg's own allow-list, so nothing they name is opened."""
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
def test_longest(content: bytes) -> None:
    """A recording over the limit is refused while it is decoded, whatever its header says."""
    check(io.BytesIO(content))
    with pytest.raises(PayloadTooLarge, match=r"longer than 2 seconds.*MAX_AUDIO_SECONDS") as caught:
        decode(io.BytesIO(content), 2)
    assert caught.value.code == "audio_too_long"


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    """Sound at some samples a second grows two thousand times at 16 kHz: it is refused before it does."""
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
        "except PayloadTooLarge: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(bomb)], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr[-800:]


def test_memory_of_a_long_recording(tmp_path: Path) -> None:
    """Two bytes a sample, while it is decoded too: what a limit on seconds allows is known in MB."""
    long = tmp_path / "long.wav"
    long.write_bytes(wav(np.zeros(10 * 60 * RATE, np.int16)))
    program = (
        "import re, sys; import av, numpy; from pathlib import Path; from services.transcription.audio import decode;"
        "most = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024;"
        "before = most(); samples = decode(open(sys.argv[1], 'rb'), 7200); print(len(samples), most() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(long)], capture_output=True, text=True, check=True)
    samples, grown = (int(word) for word in done.stdout.split())
    assert samples == 10 * 60 * RATE
    assert grown < 2.8 * samples


def test_check_goes_back() -> None:
    """After a look at the head the whole file is still to be read."""
    file = io.BytesIO(wav(tone(1.0)))
    check(file)
    assert file.tell() == 0
    with pytest.raises(InvalidRequest):
        check(io.BytesIO(b"hello"))


def test_given_up() -> None:
    """Decoding ends soon after its client has left."""
    calls = iter([False, True])
    with pytest.raises(ApiError):  # so little was decoded that it is too short
        decode(io.BytesIO(wav(tone(5.0))), 10, lambda: True)
    assert len(decode(io.BytesIO(wav(tone(60.0))), 100, lambda: next(calls))) < 60 * RATE
