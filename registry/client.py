"""Asking a running registry to mirror a model, and watching it until it is done."""

import json
import time
from typing import Any

import httpx2

from registry.progress_bar import ProgressBar

RECONNECTS = 20
RECONNECT_PAUSE_S = 1.0


class RegistryClientError(Exception):
    """The registry does not answer, refused, or failed to mirror; the message says why."""


def download(
    url: str, name: str, *, repo: str | None, revision: str | None, token: str | None, bar: ProgressBar
) -> dict[str, Any]:
    """Have the registry at `url` mirror the model `name`; returns it when it is ready. Raises RegistryClientError."""
    body = {key: value for key, value in (("hf_repo", repo), ("revision", revision)) if value is not None}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx2.Client(base_url=url, headers=headers, timeout=30.0) as client:
        try:
            answer = client.post(f"/models/{name}/download", json=body)
        except httpx2.TransportError as error:
            raise RegistryClientError(f"No registry answers at {url} ({error}). Start it, or give --url.") from error
        if answer.is_error:
            raise RegistryClientError(_reason(answer))
        model = _watch(client, answer.json(), bar)
    if model["status"] != "ready":
        raise RegistryClientError(model.get("error") or f"{name} was {model['status']}")
    return model


def _watch(client: httpx2.Client, model: dict[str, Any], bar: ProgressBar) -> dict[str, Any]:
    """Follow the model's events; the registry may be restarted meanwhile and goes on with the download."""
    for _ in range(RECONNECTS):
        try:
            with client.stream("GET", f"/models/{model['name']}/events") as events:
                for line in events.iter_lines():
                    if line.startswith("data: "):
                        model = json.loads(line.removeprefix("data: "))
                        progress = model["progress"]
                        label = f"{progress['files_done']} of {progress['files_total']} files"
                        bar.show(label, progress["bytes_done"], progress["bytes_total"])
        except httpx2.TransportError:
            time.sleep(RECONNECT_PAUSE_S)
        if model["status"] in ("ready", "failed", "cancelled"):
            return model
    raise RegistryClientError(f"The registry stopped answering while it mirrored {model['name']}. See its log.")


def _reason(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}"
