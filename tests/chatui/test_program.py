"""`python -m chatui` as a program."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from chatui.env_file import read

ROOT = Path(__file__).resolve().parents[2]


def run(output: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program with only `variables` in its environment."""
    environment = {"CHATUI_OUTPUT": str(output), "CATALOGUE": str(ROOT / "models.yaml"), **variables}
    return subprocess.run(
        [sys.executable, "-m", "chatui"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_file_is_written_readable_for_owner_and_group(tmp_path: Path) -> None:
    """The operator's settings over the shipped ones, with a key from a file."""
    (tmp_path / "chatui.env").write_text("PUBLIC_APP_NAME=Ours\n")
    (tmp_path / "keys").write_text("one,two\n")
    output = tmp_path / "env"
    output.write_text("old")
    done = run(output, CHATUI_ENV=str(tmp_path / "chatui.env"), GATEWAY_API_KEYS_FILE=str(tmp_path / "keys"))
    assert (done.returncode, done.stderr) == (0, "")
    settings = read(output.read_text())
    assert settings["PUBLIC_APP_NAME"].value == "Ours"
    assert settings["OPENAI_API_KEY"].value == "one"
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    assert "one" not in done.stdout.split()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chatui.env", "env", "keys"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('MODELS=[\n  {"name": "qwen"}\n  {"name": "llava"}\n]', "chatui.env, line 3: MODELS is not valid JSON"),
        ('MODELS=[{"name": "qwen", "multimodal": 1}]', "chatui.env, line 1: multimodal is 1"),
        ('PUBLIC_APP_NAME="both \' and `"', "PUBLIC_APP_NAME contains both"),
    ],
)
def test_invalid_file_is_reported_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    """With file, line and reason; the previous output is kept."""
    (tmp_path / "chatui.env").write_text(text)
    output = tmp_path / "env"
    output.write_text("old")
    done = run(output, CHATUI_ENV=str(tmp_path / "chatui.env"))
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert output.read_text() == "old"


def test_publication_without_login_is_remarked(tmp_path: Path) -> None:
    says = "without a login"
    assert says in run(tmp_path / "env", CLUSTER_BIND="0.0.0.0").stdout
    assert says not in run(tmp_path / "env", CLUSTER_BIND="127.0.0.1").stdout
    (tmp_path / "chatui.env").write_text("OPENID_CLIENT_ID=ours\n")
    with_login = run(tmp_path / "env", CLUSTER_BIND="10.0.0.5", CHATUI_ENV=str(tmp_path / "chatui.env"))
    assert says not in with_login.stdout


def test_unusable_files_are_reported(tmp_path: Path) -> None:
    """Missing, a folder (what Docker mounts for a missing file), not writable, not UTF-8."""
    assert "cannot be read" in run(tmp_path / "env", CHATUI_ENV=str(tmp_path / "missing")).stderr
    assert "cannot be read" in run(tmp_path / "env", CHATUI_ENV=str(tmp_path)).stderr
    assert "cannot be written" in run(tmp_path / "no" / "env").stderr
    (tmp_path / "latin").write_bytes(b"A=\xff")
    assert "UTF-8" in run(tmp_path / "env", CHATUI_ENV=str(tmp_path / "latin")).stderr
