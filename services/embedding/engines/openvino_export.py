"""A model exported for OpenVINO, and kept as a file: <cache>/openvino/<folder>/<fingerprint>/model.xml and model.bin.

The fingerprint is of the model's files and of the programs that exported it, so a change of either exports it anew.
"""

import hashlib
import secrets
import shutil
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from services.embedding.engines.interface import Tokens
from services.embedding.engines.text_model import TextModel

log = structlog.get_logger(__name__)

# Goes up when what is exported changes for the same model and versions.
LAYOUT = 1
PROGRAMS = ("openvino", "sentence-transformers", "torch", "transformers")
# Files up to this size (bytes) are configuration and read whole; of larger ones, the weights, size and time must do:
# every start compares the outcome with the weights themselves.
READ_WHOLE = 1 << 20


# What a process that was killed left half written; younger ones may belong to one that is at it.
ABANDONED_S = 3600


class Unsuitable(Exception):
    """The model cannot be run by OpenVINO as it should be; the message says why."""


class Exports:
    """Where the exports of one model folder are kept."""

    def __init__(self, openvino: Any, folder: Path, kind: str, cache: Path) -> None:
        self._openvino = openvino
        self._home = cache / "openvino" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._place = self._home / fingerprint(folder, kind)

    def kept(self) -> Any | None:
        """The model as it was exported before; None when it was not, or not with these programs."""
        if not (self._place / "model.xml").is_file():
            return None
        try:
            return self._openvino.Core().read_model(self._place / "model.xml")
        except RuntimeError as error:
            log.warning("the model is exported anew: what was kept cannot be read", error=str(error))
            return None

    def made(self, model: TextModel, batch: Sequence[Tokens]) -> Any:
        """The model exported now, and kept in place of what was; `batch` is something to trace with.

        Blocks for seconds. Where nothing can be written, that costs a line in the log and the export at the next start.
        Raises Unsuitable.
        """
        made = _convert(self._openvino, model, batch)
        try:
            self._keep(made)
        except (OSError, RuntimeError) as error:
            log.warning("exported model not kept; the next start exports it again", error=str(error))
            return made
        return self.kept() or made

    def _keep(self, made: Any) -> None:
        """Write the files so that they are there whole or not at all, whoever else does the same."""
        part = self._place.with_name(f"{self._place.name}.{secrets.token_hex(4)}.part")
        part.mkdir(parents=True)
        try:
            self._openvino.save_model(made, part / "model.xml", compress_to_fp16=False)
            for other in self._home.iterdir():
                if other.suffix != ".part" or time.time() - other.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(other, ignore_errors=True)
            try:
                part.rename(self._place)
            except OSError:
                if not self._place.is_dir():  # else another process was first
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)


def fingerprint(folder: Path, kind: str) -> str:
    """A name for what an export of `folder` depends on."""
    known = hashlib.sha256(f"{LAYOUT} {kind} {[(name, version(name)) for name in PROGRAMS]}".encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        known.update(f"\n{path.relative_to(folder)} {stat.st_size} ".encode())
        known.update(path.read_bytes() if stat.st_size <= READ_WHOLE else str(stat.st_mtime_ns).encode())
    return known.hexdigest()[:32]


def _convert(openvino: Any, model: TextModel, batch: Sequence[Tokens]) -> Any:
    import torch

    arrays = model.padded(batch[:2]).arrays
    names = list(arrays)

    class Whole(torch.nn.Module):
        """All modules from tokens to rows, with tensors for arguments as tracing wants them."""

        def __init__(self) -> None:
            super().__init__()
            self.modules_of_model = model.model

        def forward(self, *tensors: Any) -> Any:
            return model.forward(dict(zip(names, tensors, strict=True)))

    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns of every branch that depends on a length. Whether one mattered is what the self-check finds.
        warnings.simplefilter("ignore")
        try:
            made = openvino.convert_model(
                Whole(), example_input=tuple(torch.from_numpy(array) for array in arrays.values())
            )
        except Exception as error:  # PyTorch's tracing and OpenVINO's conversion raise whatever they like
            raise Unsuitable(
                f"it cannot be exported: {str(error).splitlines()[0] if str(error) else error!r}"
            ) from error
    for port, name in zip(made.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    return made
