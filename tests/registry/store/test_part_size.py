"""Part sizes of multipart uploads, up to S3's largest object."""

import pytest

from registry.store.part_size import MAX_OBJECT, MAX_PARTS, MIB, MIN_PART, part_size

MAX_PART = 5 * 1024 * MIB


@pytest.mark.parametrize("size", [0, 1, MIN_PART, MIN_PART + 1, 10**9, 60 * 10**9, MIN_PART * MAX_PARTS, MAX_OBJECT])
def test_parts_of_every_size_are_within_the_limits_of_s3(size: int) -> None:
    part = part_size(size)
    count = max(1, -(-size // part))
    assert part % MIB == 0
    assert MIN_PART <= part <= MAX_PART
    assert count <= MAX_PARTS
    assert (count - 1) * part < max(size, 1) <= count * part


def test_size_over_the_largest_object_is_refused() -> None:
    with pytest.raises(ValueError, match="largest object"):
        part_size(MAX_OBJECT + 1)
