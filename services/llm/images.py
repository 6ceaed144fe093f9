"""Images in requests: where they may come from, how large they may be, checked before anything is decoded."""

import base64
import binascii
import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kit.errors import InvalidRequest, PayloadTooLarge

if TYPE_CHECKING:
    from PIL.Image import Image

MIB = 1024 * 1024
# Decoders outside this list never see a byte: each one is code that reads what strangers send.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PARAM = "messages"
EXIF_ORIENTATION = 0x0112
# What Pillow's decoders raise for images that are broken, one way or another.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error)


@dataclass(frozen=True)
class ImageLimits:
    """What one request's images may be: how many, MiB of one encoded, millions of pixels of one."""

    count: int
    mb: int
    megapixels: int


def check_count(count: int, limits: ImageLimits) -> None:
    """Raise InvalidRequest when one request has more images than are taken."""
    if count > limits.count:
        raise InvalidRequest(
            f"{count} images in one request; at most {limits.count} are taken (MAX_IMAGES).", param=PARAM
        )


def too_large(limits: ImageLimits) -> PayloadTooLarge:
    """The error for an image of too many bytes."""
    return PayloadTooLarge(f"An image is larger than {limits.mb} MiB. Send less, or raise MAX_IMAGE_MB.")


def from_data_uri(uri: str, limits: ImageLimits) -> bytes:
    """The bytes of an image in a data URI.

    Raises InvalidRequest when it is none, PayloadTooLarge that says what to do when it is too large.
    """
    # Four characters of base64 hold three bytes.
    if len(uri) > limits.mb * MIB * 4 // 3 + 200:
        raise too_large(limits)
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
        raise InvalidRequest("image_url must look like data:image/png;base64,...", param=PARAM)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"An image's data is not base64: {error}.", param=PARAM) from error


def open_unread(content: bytes, limits: ImageLimits) -> "Image":
    """The image in `content`, its format and size known and not a pixel decoded.

    Raises InvalidRequest when it is none of the formats, or too large in pixels.
    """
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        raise InvalidRequest(f"An image is none of {', '.join(FORMATS)}, or broken.", param=PARAM) from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        PIL.Image.DecompressionBombError,
        PIL.Image.DecompressionBombWarning,
    ) as error:
        raise InvalidRequest(f"An image cannot be read: {error}.", param=PARAM) from error
    width, height = image.size
    if width * height > limits.megapixels * 1_000_000:
        raise InvalidRequest(
            f"An image has {width} by {height} pixels; at most {limits.megapixels} million are taken "
            "(MAX_IMAGE_MEGAPIXELS). Send a smaller one.",
            param=PARAM,
        )
    return image


def decode(content: bytes, limits: ImageLimits) -> "Image":
    """Return the image in `content` as RGB. Takes long: call it in a thread.

    Raises InvalidRequest when it is not an image, too large in pixels, or broken.
    """
    image = open_unread(content, limits)
    try:
        return _upright(image).convert("RGB")
    except BROKEN as error:
        raise InvalidRequest(f"An image is broken: {error}.", param=PARAM) from error


def _upright(image: "Image") -> "Image":
    """Turn a photograph as its camera noted. Pillow's own function writes the EXIF anew, which fails on odd ones."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(image.getexif().get(EXIF_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)
