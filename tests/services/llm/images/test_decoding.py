"""Images in requests, refused before they can do harm."""

import base64
import io
import struct
import zlib

import pytest

from kit.errors import ApiError, InvalidRequest, PayloadTooLarge
from services.llm.images.decoding import ImageLimits, check_count, decode, from_data_uri

Image = pytest.importorskip("PIL.Image")
LIMITS = ImageLimits(count=2, mb=1, megapixels=1)


def uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(format: str, size: tuple[int, int] = (4, 3), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, format)
    return out.getvalue()


def bomb() -> bytes:
    """Return a small PNG that declares 30,000 by 30,000 pixels."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk


def photograph(orientation: int, *, odd: bool = False) -> bytes:
    """Return a black image with a white top left corner and an EXIF orientation; `odd` EXIF has a wrong type."""
    image = Image.new("RGB", (4, 3))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112], exif[0x0128] = orientation, 3  # the orientation, the unit of the resolution
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=True, exif=exif)
    content = out.getvalue()
    unit = struct.pack(">HHI", 0x0128, 3, 1)
    assert unit in content
    return content.replace(unit, struct.pack(">HHI", 0x0128, 2, 1)) if odd else content


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [(1, (4, 3), (0, 0)), (2, (4, 3), (3, 0)), (3, (4, 3), (3, 2)), (4, (4, 3), (0, 2)), (5, (3, 4), (0, 0)),
     (6, (3, 4), (2, 0)), (7, (3, 4), (2, 3)), (8, (3, 4), (0, 3)), (9, (4, 3), (0, 0))],
)  # fmt: skip
def test_exif_orientation_is_applied(
    orientation: int, size: tuple[int, int], corner: tuple[int, int], odd: bool
) -> None:
    """Also if another EXIF value has an invalid type."""
    image = decode(photograph(orientation, odd=odd), LIMITS)
    assert image.size == size
    assert image.getpixel(corner) == (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_common_formats_are_decoded_to_rgb(format: str) -> None:
    image = decode(picture(format), LIMITS)
    assert (image.size, image.mode) == ((4, 3), "RGB")


def test_transparency_becomes_rgb() -> None:
    assert decode(picture("PNG", mode="RGBA"), LIMITS).mode == "RGB"


def test_image_limits_are_checked_before_decoding() -> None:
    with pytest.raises(InvalidRequest, match="MAX_IMAGES"):
        check_count(3, LIMITS)
    with pytest.raises(PayloadTooLarge, match="MAX_IMAGE_MB"):
        from_data_uri(uri(b"x" * 1_200_000), LIMITS)


@pytest.mark.parametrize(
    "url",
    [
        "data:,hello",
        "data:text/plain;base64,aGVsbG8=",
        "data:image/png;base64",
        "data:image/png;base64,%%%",
        uri(b""),
        uri(b"not an image"),
        uri(picture("PNG")[:40]),
        uri(picture("JPEG", (64, 64))[:300], "jpeg"),
        uri(picture("TIFF"), "tiff"),
        uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml"),
        uri(picture("PNG", (2000, 1000))),
        uri(bomb()),
    ],
)
def test_invalid_images_are_rejected(url: str) -> None:
    with pytest.raises(ApiError) as refused:
        decode(from_data_uri(url, LIMITS), LIMITS)
    assert refused.value.status == 400
