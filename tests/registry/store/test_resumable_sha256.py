"""A sha256 that is put down and taken up again."""

import hashlib

import pytest

from registry.store.resumable_sha256 import ResumableSha256, can_be_resumed
from tests.support.hub import random_bytes

CONTENT = random_bytes("sha256", 100_000)


def test_states_can_be_kept_with_this_python() -> None:
    """Otherwise interrupted files would begin again, and nobody would notice."""
    assert can_be_resumed()


@pytest.mark.parametrize("cut", [0, 64, 640, 64 * 1000])
@pytest.mark.parametrize("end", [64 * 1000, 64 * 1000 + 1, 100_000])
def test_goes_on_to_the_same_digest(cut: int, end: int) -> None:
    """Cut between two blocks, ended anywhere: what hashlib says."""
    first = ResumableSha256()
    first.update(CONTENT[:cut])
    second = ResumableSha256(first.state, cut)
    second.update(memoryview(bytearray(CONTENT[cut:end])))
    assert second.hexdigest() == hashlib.sha256(CONTENT[:end]).hexdigest()
    assert second.hexdigest() == second.hexdigest()


def test_no_state_inside_a_block() -> None:
    """A state is eight words; what is left of a block would be lost."""
    hasher = ResumableSha256()
    hasher.update(b"x")
    assert hasher.state is None
    hasher.update(b"x" * 63)
    assert hasher.state is not None


def test_more_than_fits_into_32_bits() -> None:
    """The count of bits has two words: from 512 MiB on the second one is used."""
    count = (1 << 29) + 64  # the state of so many zeros, without feeding them: only the count is looked at
    hasher = ResumableSha256("00" * 32, count)
    hasher.update(b"tail")
    other = ResumableSha256("00" * 32, 64)
    other.update(b"tail")
    assert hasher.hexdigest() != other.hexdigest()


@pytest.mark.parametrize(("state", "count"), [("00", 64), ("zz" * 32, 64), ("00" * 32, 63), ("00" * 32, -64)])
def test_what_is_no_state_is_refused(state: str, count: int) -> None:
    """A damaged note is not gone on with."""
    with pytest.raises(ValueError, match=r"."):
        ResumableSha256(state, count)
