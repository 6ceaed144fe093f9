"""`registry mirror`, `registry download`, `registry sizes`."""

import argparse
import asyncio
import sys
import threading
from collections.abc import Iterable

from kit.config.catalogue import Catalogue, Entry
from kit.config.hub_names import BadName
from kit.hub.client import HubClient
from kit.net.retry import TransientError
from kit.units import human_bytes
from registry.commands.bulk_mirror import Outcome, follow_download, mirror_models
from registry.commands.progress_table import ProgressTable, summary
from registry.commands.registry_client import Model, RegistryClient, RegistryClientError
from registry.hub.client import HubError
from registry.hub.file_selection import select_files
from registry.models.library import Library
from registry.models.manifest import LeftOut
from registry.models.manifest import summary as summary_of
from registry.open_store import open_library
from registry.settings import RegistrySettings
from registry.store.interface import StoreError

EXIT_SOME_FAILED = 1
EXIT_UNKNOWN_NAME = 2
EXIT_NO_REGISTRY = 69  # EX_UNAVAILABLE of sysexits.h
# Longer than a restart of the registry and its store.
RETRY_FOR_S = 120.0

MIRROR_HELP = """\
Download the models of the catalogue, optional ones included, through a running registry; show the progress; verify
every digest in the store; print a summary. Models that are already in the store are not downloaded again. If the
registry restarts meanwhile, it resumes the downloads, and this command waits for it.

exit status:
  0    every model is ready, all digests verified
  1    some models failed; the summary has the reasons
  2    unknown option or name; nothing was done
  69   the registry cannot be reached
  130  interrupted; the registry continues the downloads, and the same command joins them
"""


def mirror(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Mirror models and print the summary; exits as MIRROR_HELP says."""
    entries = chosen_entries(settings.load_catalogue(), options.names)
    outcomes = asyncio.run(_mirror(settings, options, entries))
    print(summary(outcomes))
    if any(outcome.error for outcome in outcomes):
        raise SystemExit(EXIT_SOME_FAILED)


async def _mirror(settings: RegistrySettings, options: argparse.Namespace, entries: list[Entry]) -> list[Outcome]:
    async with _client(settings, options) as client:
        with ProgressTable(entry.name for entry in entries) as table:
            client.on_wait = lambda reason: table.notify(f"waiting: {reason}")
            return await mirror_models(client, entries, table.show, max_parallel=options.jobs, verify=options.verify)


def download(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Mirror one model, of the catalogue or not, and print the result. Raises RegistryClientError."""
    given = (("hf_repo", options.repo), ("revision", options.revision))
    body = {key: value for key, value in given if value is not None}

    async def run() -> Model:
        async with _client(settings, options) as client:
            with ProgressTable([options.name]) as table:
                client.on_wait = lambda reason: table.notify(f"waiting: {reason}")
                return await follow_download(client, options.name, body, table.show)

    model = asyncio.run(run())
    if model["status"] != "ready":
        raise RegistryClientError(str(model.get("error") or f"The download of {options.name} was {model['status']}."))
    print(f"{options.name}: {model['hf_repo']} at {model['commit'][:12]}, {human_bytes(model['size_bytes'])}")
    if left_out := [LeftOut.model_validate(each) for each in model.get("left_out", ())]:
        print(f"left out: {summary_of(left_out)}")


def sizes(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Print a tab-separated line per model: name, bytes, bytes missing in the store; or `?` twice and the error."""
    library = open_library(settings)
    with settings.source_hub() as hub:
        for entry in chosen_entries(library.catalogue, options.names):
            try:
                size, missing = _size(library, hub, entry)
                print(entry.name, size, missing, sep="\t", flush=True)
            except (HubError, TransientError, BadName, StoreError) as error:
                print(entry.name, "?", "?", error, sep="\t", flush=True)


def _size(library: Library, hub: HubClient, entry: Entry) -> tuple[int, int]:
    """Return the model's bytes and the bytes missing in the store. Queries the Hub only for a model not mirrored."""
    pointer = library.name(entry.name)
    if pointer is not None and pointer.repo == entry.hf_repo and entry.revision in (pointer.revision, pointer.commit):
        return library.manifest(pointer.repo, pointer.commit).size, 0
    listing = hub.listing(entry.hf_repo, entry.revision, threading.Event())
    paths = set(select_files([file.path for file in listing.files], entry.allow_patterns, entry.ignore_patterns))
    files = [file for file in listing.files if file.path in paths]
    absent = [file.size for file in files if file.sha256 is None or library.store.blob_size(file.sha256) != file.size]
    return sum(file.size for file in files), sum(absent)


def chosen_entries(catalogue: Catalogue, names: Iterable[str]) -> list[Entry]:
    """Return the entries for `names` (default: all), without duplicates; exits if a name is unknown."""
    known = ", ".join(entry.name for entry in catalogue) or "none (set CATALOGUE to models.yaml)"
    names = list(names)
    unknown = [name for name in names if catalogue.find(name) is None]
    if unknown or not len(catalogue):
        problem = f"No such model: {', '.join(unknown)}." if unknown else "The catalogue is empty."
        sys.stderr.write(f"{problem} Models of the catalogue: {known}.\n")
        raise SystemExit(EXIT_UNKNOWN_NAME)
    found = [catalogue.resolve(name) for name in names] or list(catalogue)
    return list({entry.name: entry for entry in found}.values())


def _client(settings: RegistrySettings, options: argparse.Namespace) -> RegistryClient:
    url = options.url or f"http://127.0.0.1:{settings.port}"
    return RegistryClient(url, settings.own_token(), retry_for_s=RETRY_FOR_S)
