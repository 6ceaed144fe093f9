"""Images in requests: limits, checked before anything is decoded, and decoding."""

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
# Other decoders are disabled: each one parses untrusted data.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PARAM = "messages"
EXIF_ORIENTATION = 0x0112
# Raised by Pillow's decoders for corrupt images.
DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error)


@dataclass(frozen=True)
class ImageLimits:
    """Limits per request: number of images, MiB of an encoded image, millions of pixels of an image."""

    count: int
    mb: int
    megapixels: int


def check_count(count: int, limits: ImageLimits) -> None:
    """Raise InvalidRequest if a request has too many images."""
    if count > limits.count:
        raise InvalidRequest(f"The request has {count} images; the limit is {limits.count} (MAX_IMAGES).", param=PARAM)


def too_large(limits: ImageLimits) -> PayloadTooLarge:
    """Return the error for an image over the size limit."""
    return PayloadTooLarge(f"An image is larger than {limits.mb} MiB (MAX_IMAGE_MB). Send a smaller one.")


def from_data_uri(uri: str, limits: ImageLimits) -> bytes:
    """Return the bytes of an image in a data URI. Raises InvalidRequest, or PayloadTooLarge."""
    # Four characters of base64 hold three bytes.
    if len(uri) > limits.mb * MIB * 4 // 3 + 200:
        raise too_large(limits)
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
        raise InvalidRequest("image_url must be a data URI such as data:image/png;base64,...", param=PARAM)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"The data of an image is not base64: {error}.", param=PARAM) from error


def open_lazily(content: bytes, limits: ImageLimits) -> "Image":
    """Read an image's format and size without decoding it.

    Raises InvalidRequest if the format is not supported or the image has too many pixels.
    """
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        raise InvalidRequest(f"An image is corrupt, or not one of {', '.join(FORMATS)}.", param=PARAM) from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        PIL.Image.DecompressionBombError,
        PIL.Image.DecompressionBombWarning,
    ) as error:
        raise InvalidRequest(f"An image could not be read: {error}.", param=PARAM) from error
    width, height = image.size
    if width * height > limits.megapixels * 1_000_000:
        raise InvalidRequest(
            f"An image has {width} by {height} pixels; the limit is {limits.megapixels} million "
            "(MAX_IMAGE_MEGAPIXELS). Send a smaller one.",
            param=PARAM,
        )
    return image


def decode(content: bytes, limits: ImageLimits) -> "Image":
    """Decode an image to RGB. Blocks for long. Raises InvalidRequest if it is invalid or too large."""
    image = open_lazily(content, limits)
    try:
        return _upright(image).convert("RGB")
    except DECODE_ERRORS as error:
        raise InvalidRequest(f"An image is corrupt: {error}.", param=PARAM) from error


def _upright(image: "Image") -> "Image":
    """Rotate by the EXIF orientation. Pillow's own function also rewrites the EXIF, which fails if it is malformed."""
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
