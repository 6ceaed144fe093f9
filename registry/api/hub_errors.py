"""The Hub's errors: clients recognise them by X-Error-Code and show X-Error-Message."""

from kit.errors import ApiError, NotFound
from registry.models.manifest import Manifest


def hub_error(hub_code: str, message: str, *, code: str = "not_found", **headers: str) -> ApiError:
    """A 404 with `hub_code`, which clients map to an exception."""
    # A header value is Latin-1; the body has the full message.
    plain = message.encode("ascii", "replace").decode()
    return NotFound(message, code=code, headers={"X-Error-Code": hub_code, "X-Error-Message": plain, **headers})


def entry_not_found(manifest: Manifest, path: str) -> ApiError:
    """The commit has no such file or folder."""
    message = f"{manifest.repo} at {manifest.commit} has no {path!r}. GET /api/models/{manifest.repo} lists its files."
    return hub_error("EntryNotFound", message, **{"X-Repo-Commit": manifest.commit})
