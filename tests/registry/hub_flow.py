"""Use a Hub like people do, with the installed version of huggingface_hub, and print the results as JSON.

    HF_ENDPOINT=http://... HF_HOME=... python tests/registry/hub_flow.py FOLDER

It stands alone: the environments that run it hold huggingface_hub and nothing of this project.
"""

import json
import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

REPO = "test/small"


def main() -> None:
    """Query, download, provoke errors, and use the command line."""
    folder, api = Path(sys.argv[1]), HfApi()
    snapshot = Path(snapshot_download(REPO, cache_dir=folder / "cache"))
    single = hf_hub_download(REPO, "1_Pooling/config.json", local_dir=folder / "single")
    results = {
        "siblings": sorted(file.rfilename for file in api.model_info(REPO, files_metadata=True).siblings or ()),
        "tree": sorted(entry.path for entry in api.list_repo_tree(REPO, recursive=True)),
        "paths_info": [entry.path for entry in api.get_paths_info(REPO, ["config.json", "none"])],
        "branches": [ref.name for ref in api.list_repo_refs(REPO).branches],
        "search": [model.id for model in api.list_models(search="small")],
        "there": [api.file_exists(REPO, "config.json"), api.repo_exists(REPO), api.revision_exists(REPO, "main")],
        "absent": [api.file_exists(REPO, "none"), api.repo_exists("test/none"), api.revision_exists(REPO, "none")],
        "commit": snapshot.name,
        "snapshot": sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()),
        "single": Path(single).read_text(),
        "no file": refusal(lambda: hf_hub_download(REPO, "none", cache_dir=folder / "cache")),
        "no repository": refusal(lambda: snapshot_download("test/none", cache_dir=folder / "cache")),
        "no revision": refusal(lambda: snapshot_download(REPO, revision="none", cache_dir=folder / "cache")),
        "hf download": command("download", REPO),
        "hf cache verify": command("cache", "verify", REPO),
    }
    print(json.dumps(results))


def refusal(call: object) -> str:
    """The name of the exception that `call` raises, without a prefix that depends on the version."""
    try:
        call()  # type: ignore[operator]  # a callable
    except Exception as error:  # noqa: BLE001  # whatever it is, its name is the result
        return type(error).__name__.removeprefix("Remote")
    return "nothing"


def command(*words: str) -> str:
    """The result of `hf ...`; versions without the command print "invalid choice"."""
    hf = str(Path(sys.executable).with_name("hf"))
    done = subprocess.run([hf, *words], capture_output=True, text=True, check=False)
    return "ok" if done.returncode == 0 else "not offered" if "invalid choice" in done.stderr else done.stderr[-500:]


if __name__ == "__main__":
    main()
