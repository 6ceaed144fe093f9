"""The Hub's errors as its clients know them: by X-Error-Code, and shown with X-Error-Message."""

from kit.errors import ApiError, NotFound
from registry.models.manifest import Manifest


def hub_error(hub_code: str, message: str, *, code: str = "not_found", **headers: str) -> ApiError:
    """A 404 with `hub_code`, which clients turn into an exception of their own."""
    # A header takes Latin-1 without line ends; the body has the message whole.
    plain = message.encode("ascii", "replace").decode()
    return NotFound(message, code=code, headers={"X-Error-Code": hub_code, "X-Error-Message": plain, **headers})


def entry_not_found(manifest: Manifest, path: str) -> ApiError:
    """There is no such file or folder in this commit."""
    message = f"{manifest.repo} at {manifest.commit} has no {path!r}. GET /api/models/{manifest.repo} lists its files."
    return hub_error("EntryNotFound", message, **{"X-Repo-Commit": manifest.commit})
