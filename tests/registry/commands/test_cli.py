"""The commands of `registry`, run as processes."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from registry.commands.cli import main
from tests.registry.conftest import Run
from tests.support.hub import serving_registry, small_repo

ROOT = Path(__file__).resolve().parents[3]


def test_import_then_list(registry: Run, tmp_path: Path) -> None:
    """A folder becomes a model of the catalogue's repository; a second import prints the same."""
    folder = small_repo(tmp_path / "repo")
    first = registry("import", "minilm", str(folder), store=tmp_path / "store")
    assert first.returncode == 0, first.stderr
    assert "minilm: sentence-transformers/all-MiniLM-L6-v2 at" in first.stdout
    assert registry("import", "embedding", str(folder), store=tmp_path / "store").stdout == first.stdout
    listed = registry("list", store=tmp_path / "store")
    assert listed.stdout.startswith("minilm ")
    assert "3.0 MB" in listed.stdout


def test_import_without_store_prints_the_default_store(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "STORE"} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "registry", "import", "x", str(small_repo(tmp_path / "repo", weights=200))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1]
    assert "file:~/.local/share/gpu-cluster/registry" in last
    assert "Set STORE to use another" in last
    environment["STORE"] = f"file:{tmp_path / 'store'}"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "STORE" not in done.stdout


def test_abbreviated_options_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gc", "--dry"])
    assert "unrecognized arguments: --dry" in capsys.readouterr().err


def test_import_with_given_commit(registry: Run, tmp_path: Path) -> None:
    done = registry(
        *("import", "mine", str(small_repo(tmp_path / "repo")), "--repo", "org/mine", "--revision", "c" * 40),
        store=tmp_path / "store",
    )
    assert "mine: org/mine at cccccccccccc" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "x", "/nowhere"], "No such folder: /nowhere"),
        (["import", "x", "EMPTY"], "is empty"),
        (["import", "../x", "FOLDER"], "is not a model name"),
        (["import", "x", "FOLDER", "--repo", "a/b/c"], "is not a repository"),
        (["import", "x", "FOLDER", "--revision", "../main"], "is not a revision"),
        (["import", "x", "DANGLING"], "is a broken link"),
    ],
)
def test_import_errors_are_messages_without_traceback(
    registry: Run, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "model.bin").symlink_to("nowhere")
    places = {"EMPTY": "empty", "DANGLING": "dangling", "FOLDER": "repo"}
    small_repo(tmp_path / "repo", weights=200)
    given = [str(tmp_path / places[word]) if word in places else word for word in arguments]
    done = registry(*given, store=tmp_path / "store")
    assert done.returncode == 78
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_unreachable_registry_exits_with_69(registry: Run, tmp_path: Path) -> None:
    done = registry("download", "x", "--url", "http://127.0.0.1:9", store=tmp_path / "store")
    assert done.returncode == 69
    assert "No registry at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_full_disk_is_reported_and_publishes_nothing(tmp_path: Path) -> None:
    folder = small_repo(tmp_path / "repo")
    done = subprocess.run(
        [sys.executable, "-m", "registry", "import", "big", str(folder)],
        env={**os.environ, "STORE": f"file:{tmp_path / 'store'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.returncode == 78
    assert "is full" in done.stderr
    assert list((tmp_path / "store").glob("names/*")) == []
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def test_download_through_a_running_registry(registry: Run, tmp_path: Path) -> None:
    """`registry download` mirrors a model from another registry and prints the result."""
    imported = registry(
        "import", "small", str(small_repo(tmp_path / "repo")), "--repo", "o/small", store=tmp_path / "a"
    )
    assert imported.returncode == 0, imported.stderr
    with (
        serving_registry(tmp_path / "a") as source,
        serving_registry(tmp_path / "b", hf_endpoint=source) as mirror,
    ):
        done = registry("download", "copy", "--repo", "o/small", "--url", mirror, store=tmp_path / "unused")
        assert done.returncode == 0, done.stderr
        assert "copy: o/small at" in done.stdout
        missing = registry("download", "x", "--repo", "o/none", "--url", mirror, store=tmp_path / "unused")
        assert missing.returncode == 78
        assert "o/none does not exist at" in missing.stderr


@pytest.fixture
def keys(registry: Run, tmp_path: Path) -> Path:
    """Path of a key pair, without the suffix."""
    made = registry("keygen", "--output", str(tmp_path / "site"), store=tmp_path / "store")
    assert made.returncode == 0, made.stderr
    return tmp_path / "site"


def test_bundle_is_exported_verified_and_imported(registry: Run, tmp_path: Path, keys: Path) -> None:
    """Each step uses the command that the step before it printed."""
    store, there, bundle = tmp_path / "store", tmp_path / "there", str(tmp_path / "bundle")
    assert registry("import", "minilm", str(small_repo(tmp_path / "repo")), store=store).returncode == 0
    exported = registry(
        "export", "--output", bundle, "--sign-with", f"{keys}.key", "--volume-size", "1MB", "embedding", store=store
    )
    assert exported.returncode == 0, exported.stderr
    assert "3.0 MB in 4 volumes" in exported.stdout
    command = exported.stdout.splitlines()[-1].partition("to verify: registry ")[2].split()
    verified = registry(*command, store=there)
    assert "verified, signed with key" in verified.stdout
    imported = registry("import", bundle, "--key", f"{keys}.pub", store=there)
    assert imported.returncode == 0, imported.stderr
    assert "3.0 MB new, 0 B already present" in imported.stdout
    assert "0 B new, 3.0 MB already present" in registry("import", bundle, "--key", f"{keys}.pub", store=there).stdout
    assert registry("list", store=there).stdout == registry("list", store=store).stdout


def test_damaged_bundle_is_rejected_naming_the_volume(registry: Run, tmp_path: Path, keys: Path) -> None:
    store, there, bundle = tmp_path / "store", tmp_path / "there", tmp_path / "bundle"
    registry("import", "x", str(small_repo(tmp_path / "repo")), store=store)
    registry("export", "--output", str(bundle), "--sign-with", f"{keys}.key", store=store)
    volume = bundle / "volume-0001.tar"
    volume.write_bytes(volume.read_bytes()[:-5] + b"xxxxx")
    for command in ("verify", "import"):
        rejected = registry(command, str(bundle), "--key", f"{keys}.pub", store=there)
        assert rejected.returncode == 1
        assert rejected.stderr.count("\n") == 1
        assert "volume-0001.tar" in rejected.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["import", "a"], 1, "--key NAME.pub. To import a folder as a model: registry import NAME FOLDER"),
        (["import", "a", "b", "c"], 2, "Usage: registry import NAME FOLDER, or BUNDLE --key PUBLIC_KEY"),
        (["import", "a", "b", "--key", "k.pub"], 2, "Usage: registry import NAME FOLDER, or BUNDLE --key PUBLIC_KEY"),
        (["import", "a", "--key", "k.pub"], 1, "k.pub cannot be read as a public key"),
        (["keygen", "--output", "no/where"], 1, "cannot be written"),
        (["export", "--output", "x", "--sign-with", "no.key"], 1, "no.key cannot be read as a secret key"),
    ],
)
def test_bundle_and_folder_arguments_are_distinguished(
    registry: Run, tmp_path: Path, arguments: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = registry(*arguments, store=tmp_path / "store")
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_keygen_does_not_overwrite_keys(registry: Run, tmp_path: Path, keys: Path) -> None:
    before = keys.with_suffix(".key").read_bytes()
    done = registry("keygen", "--output", str(keys), store=tmp_path / "store")
    assert (done.returncode, "already exists" in done.stderr) == (1, True)
    assert keys.with_suffix(".key").read_bytes() == before
