"""Cache of models exported for OpenVINO: <cache>/openvino/<folder>/<fingerprint>/model.xml and model.bin.

The fingerprint covers the model's files and the versions of the exporting packages: a change of either exports again.
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

# Increase when the export changes for the same model and package versions.
EXPORT_VERSION = 1
EXPORT_PACKAGES = ("openvino", "sentence-transformers", "torch", "transformers")
# Larger files are weights: size and mtime must do, because every start compares the export's results with the weights'.
MAX_FULLY_HASHED_BYTES = 1 << 20
# Older partial exports were left by killed processes; younger ones may still be in progress.
STALE_PART_S = 3600


class UnsupportedModel(Exception):
    """OpenVINO cannot run the model correctly; the message is the reason."""


class ExportCache:
    """Cached exports of one model folder."""

    def __init__(self, openvino: Any, folder: Path, kind: str, cache: Path) -> None:
        self._openvino = openvino
        self._folder = cache / "openvino" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._entry = self._folder / fingerprint(folder, kind)

    def load(self) -> Any | None:
        """Return the cached export; None if there is none for the current fingerprint, or it is unreadable."""
        if not (self._entry / "model.xml").is_file():
            return None
        try:
            return self._openvino.Core().read_model(self._entry / "model.xml")
        except RuntimeError as error:
            log.warning("cached export is unreadable; exporting again", error=str(error))
            return None

    def export(self, model: TextModel, batch: Sequence[Tokens]) -> Any:
        """Export the model, with `batch` as the example input, and replace the cached export. Blocks for seconds.

        A cache that cannot be written is only logged. Raises UnsupportedModel.
        """
        exported = _convert(self._openvino, model, batch)
        try:
            self._save(exported)
        except (OSError, RuntimeError) as error:
            log.warning("export not cached; the next start exports again", error=str(error))
            return exported
        return self.load() or exported

    def _save(self, exported: Any) -> None:
        """Write the files atomically; other processes may do the same."""
        part = self._entry.with_name(f"{self._entry.name}.{secrets.token_hex(4)}.part")
        part.mkdir(parents=True)
        try:
            self._openvino.save_model(exported, part / "model.xml", compress_to_fp16=False)
            for other in self._folder.iterdir():
                if other.suffix != ".part" or time.time() - other.stat().st_mtime > STALE_PART_S:
                    shutil.rmtree(other, ignore_errors=True)
            try:
                part.rename(self._entry)
            except OSError:
                if not self._entry.is_dir():  # otherwise another process was first
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)


def fingerprint(folder: Path, kind: str) -> str:
    """Return a digest of everything that an export of `folder` depends on."""
    digest = hashlib.sha256(f"{EXPORT_VERSION} {kind} {[(name, version(name)) for name in EXPORT_PACKAGES]}".encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        digest.update(f"\n{path.relative_to(folder)} {stat.st_size} ".encode())
        digest.update(path.read_bytes() if stat.st_size <= MAX_FULLY_HASHED_BYTES else str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:32]


def _convert(openvino: Any, model: TextModel, batch: Sequence[Tokens]) -> Any:
    import torch

    arrays = model.pad(batch[:2])
    names = list(arrays)

    class TracedModel(torch.nn.Module):
        """The model with positional tensor arguments, as tracing requires."""

        def __init__(self) -> None:
            super().__init__()
            self.modules_of_model = model.model

        def forward(self, *tensors: Any) -> Any:
            return model.forward(dict(zip(names, tensors, strict=True)))

    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns of every branch that depends on a length; the self-check finds those that matter.
        warnings.simplefilter("ignore")
        try:
            exported = openvino.convert_model(
                TracedModel(), example_input=tuple(torch.from_numpy(array) for array in arrays.values())
            )
        except Exception as error:  # tracing and conversion have no common base class
            raise UnsupportedModel(
                f"it cannot be exported: {str(error).splitlines()[0] if str(error) else error!r}"
            ) from error
    for port, name in zip(exported.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    return exported
