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


@dataclass(frozen=True)
class ImageLimits:
    """What one request's images may be: how many, MiB of one encoded, millions of pixels of one."""

    count: int
    mb: int
    megapixels: int


def check_urls(urls: list[str], limits: ImageLimits) -> None:
    """Check the number of images, and that each is a data URI that is small enough.

    Raises InvalidRequest or PayloadTooLarge that says what to do.
    """
    if len(urls) > limits.count:
        raise InvalidRequest(
            f"{len(urls)} images in one request; at most {limits.count} are taken (MAX_IMAGES).", param=PARAM
        )
    for url in urls:
        scheme = url.partition(":")[0].lower()
        if scheme in ("http", "https"):
            raise InvalidRequest(
                "Images by http(s) URL are not fetched from here. Send the image itself as a data URI: "
                "data:image/png;base64,...",
                param=PARAM,
                code="image_url_not_allowed",
            )
        if scheme != "data":
            raise InvalidRequest(
                "image_url must be a data URI: data:image/png;base64,... Nothing else is read.", param=PARAM
            )
        # Four characters of base64 hold three bytes.
        if len(url) > limits.mb * MIB * 4 // 3 + 200:
            raise PayloadTooLarge(f"An image is larger than {limits.mb} MiB. Send less, or raise MAX_IMAGE_MB.")


def decode(url: str, limits: ImageLimits) -> "Image":
    """Return the RGB image of a data URI that passed `check_urls`. Takes long: call it in a thread.

    Raises InvalidRequest when it is not base64, not an image, too large in pixels, or broken.
    """
    import PIL.Image

    head, comma, payload = url.partition(",")
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
        raise InvalidRequest("image_url must look like data:image/png;base64,...", param=PARAM)
    try:
        content = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"An image's data is not base64: {error}.", param=PARAM) from error
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
    ) as e:
        raise InvalidRequest(f"An image cannot be read: {e}.", param=PARAM) from e
    width, height = image.size
    if width * height > limits.megapixels * 1_000_000:
        raise InvalidRequest(
            f"An image has {width} by {height} pixels; at most {limits.megapixels} million are taken "
            "(MAX_IMAGE_MEGAPIXELS). Send a smaller one.",
            param=PARAM,
        )
    try:
        return _upright(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error) as error:
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
