"""Part sizes of multipart uploads. Pure arithmetic.

Limits of S3: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

MIB = 1 << 20
MIN_PART = 16 * MIB
MAX_PARTS = 10_000
MAX_OBJECT = 5 * 1024 * 1024 * MIB


def part_size(size: int) -> int:
    """The size of each part but the last for a blob of `size` bytes: whole MiB, at least 16, at most 10,000 parts.

    Raises ValueError over 5 TiB, S3's largest object.
    """
    if size > MAX_OBJECT:
        raise ValueError(f"{size} bytes exceed S3's largest object, {MAX_OBJECT}")
    smallest = -(-size // MAX_PARTS)
    return max(MIN_PART, -(-smallest // MIB) * MIB)
