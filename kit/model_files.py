"""Model files from the registry into a local folder: verified, resumable, shared between services.

(Interface; the implementation follows.)
"""

import threading
from collections.abc import Callable
from pathlib import Path

from kit.catalogue import Entry


class ModelFilesError(Exception):
    """The files could not be had. `may_pass` says whether waiting and trying again can help."""

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


def fetch_model(
    entry: Entry,
    *,
    registry_url: str,
    token: str | None,
    cache: Path,
    report: Callable[[float, str], None],
    stop: threading.Event,
) -> Path:
    """Return a local folder that holds exactly the verified files of `entry`."""
    raise NotImplementedError
