"""The layout of volumes, for many sizes."""

import hashlib
import io
import random
import tarfile

import pytest

from registry.bundle.layout import MIN_VOLUME, Content, gaps, lay_out
from registry.bundle.manifest import BundleError
from registry.store.interface import blob_key
from tests.support.hub import random_bytes


def some_contents(seed: int) -> dict[str, bytes]:
    """Contents with sizes around the boundaries: empty, a block, a volume, several volumes."""
    chance = random.Random(seed)
    sizes = [0, 1, 511, 512, 513, MIN_VOLUME - 2048, MIN_VOLUME, 5 * MIN_VOLUME + 7]
    sizes += [chance.randrange(3 * MIN_VOLUME) for _ in range(12)]
    chance.shuffle(sizes)
    found = [random_bytes(f"{seed}-{number}", size) for number, size in enumerate(sizes)]
    return {hashlib.sha256(data).hexdigest(): data for data in found}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("volume_size", [MIN_VOLUME, MIN_VOLUME + 1, 3 * MIN_VOLUME, 1 << 40])
def test_tar_reads_every_byte(seed: int, volume_size: int) -> None:
    """Volumes are tar archives within the size limit; their members, joined by name, are the contents."""
    contents = some_contents(seed)
    volumes = lay_out([Content(blob_key(key), key, len(data)) for key, data in contents.items()], volume_size)
    found: dict[str, bytes] = {}
    for volume in volumes:
        written = b""
        for before, piece in gaps(volume):
            written += before
            if piece is not None:
                assert piece.at == len(written)
                written += contents[piece.sha256][piece.start : piece.start + piece.length]
        assert len(written) == volume.size <= volume_size
        with tarfile.open(fileobj=io.BytesIO(written), mode="r:") as archive:
            for member in archive:
                data = archive.extractfile(member)
                assert data is not None
                content = member.name.partition(".part")[0]
                found[content] = found.get(content, b"") + data.read()
    assert found == {blob_key(key): data for key, data in contents.items()}
    if volume_size == 3 * MIN_VOLUME:  # less than a quarter of a volume stays free
        assert all(volume.size > volume_size * 3 // 4 for volume in volumes[:-1])


def test_members_larger_than_8_gib() -> None:
    """The size does not fit a plain tar header; pax headers hold it."""
    (volume,) = lay_out([Content("x", "0" * 64, 20 << 30)], 1 << 40)
    before, piece = next(gaps(volume))
    assert piece is not None
    assert (piece.at, piece.length) == (len(before), 20 << 30)
    with tarfile.open(fileobj=io.BytesIO(before), mode="r:") as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.offset_data) == ("x", 20 << 30, len(before))


def test_too_small_volume_size_is_rejected() -> None:
    with pytest.raises(BundleError, match="at least 65536 bytes, not 1000"):
        lay_out([], 1000)
