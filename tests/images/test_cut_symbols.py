"""Stripping symbols from libraries: they still load, unknown files stay unchanged."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop.loop

CUT = Path(__file__).resolve().parents[2] / "deploy" / "images" / "cut_symbols.py"
LIBRARY = Path(uvloop.loop.__file__)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the libraries of images are Linux's")


def cut(folder: Path) -> str:
    return subprocess.run([sys.executable, CUT, folder], capture_output=True, text=True, check=True).stdout


def test_stripped_library_is_smaller_and_works(tmp_path: Path) -> None:
    """uvloop's, which ships with symbols. A second run changes nothing."""
    package = tmp_path / "uvloop"
    shutil.copytree(LIBRARY.parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    library = package / LIBRARY.name
    assert "MB cut off 1 libraries" in cut(tmp_path)
    size = library.stat().st_size
    assert size < LIBRARY.stat().st_size / 2
    program = "import asyncio, uvloop; print(uvloop.__file__); uvloop.run(asyncio.sleep(0))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(package / "__init__.py")), done.stderr
    assert ": 0 MB cut off" in cut(tmp_path)
    assert library.stat().st_size == size


@pytest.mark.parametrize(
    "content",
    [b"", b"/* GNU ld script */ INPUT(libm.so.6)", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01" + bytes(200)],
    ids=["empty", "text", "32 bits", "no segments"],
)
def test_files_without_symbols_are_left_unchanged(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "lib.so.1"
    file.write_bytes(content)
    cut(tmp_path)
    assert file.read_bytes() == content


def test_file_with_appended_data_is_left_unchanged(tmp_path: Path) -> None:
    """Some programs keep data after the end of the ELF file."""
    file = tmp_path / "lib.so"
    file.write_bytes(LIBRARY.read_bytes() + b"data")
    cut(tmp_path)
    assert file.read_bytes() == LIBRARY.read_bytes() + b"data"
