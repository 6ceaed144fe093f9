"""The command line: `registry serve`, `registry import NAME FOLDER`, `registry list`, `registry download NAME`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.hub_names import COMMIT, BadName
from kit.server import fail, run
from kit.settings import SettingsError, load_settings
from registry.client import RegistryClientError, download
from registry.folder import FolderError, bytes_to_read, import_folder
from registry.library import MAIN, Library
from registry.open_store import open_store
from registry.progress_bar import ProgressBar, human_bytes
from registry.settings import RegistrySettings
from registry.store import StoreError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: the program's own) name. Exits with 78 and a message on failure."""
    options = _parser().parse_args(arguments)
    if options.command in (None, "serve"):
        serve()
        return
    try:
        settings = load_settings(RegistrySettings)
        {"import": _import, "list": _list, "download": _download}[options.command](settings, options)
    except (SettingsError, FolderError, RegistryClientError, BadName, StoreError) as error:
        fail(f"registry {options.command}: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. Run the same command again to go on.\n")
        raise SystemExit(130) from None


def serve() -> None:
    """Serve until SIGINT or SIGTERM."""
    from registry.app import create_registry

    run("registry", RegistrySettings, create_registry)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="registry",
        description="Models by name, commit and digest. Settings come from the environment: STORE, CATALOGUE, PORT ...",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve models over HTTP (the default)")
    importing = commands.add_parser("import", help="put a local folder into the store as a model")
    importing.add_argument("name", help="the model's name, such as qwen")
    importing.add_argument("folder", type=Path, help="the folder that holds config.json and the weights")
    importing.add_argument("--repo", help="ORG/NAME that clients load it by (default: the catalogue's, or local/NAME)")
    importing.add_argument(
        "--revision", help="the commit (40 hex digits) that these files are, or a branch or tag to load them by"
    )
    downloading = commands.add_parser("download", help="have a running registry mirror a model, and watch it")
    downloading.add_argument("name", help="the model's name; a name of the catalogue needs nothing more")
    downloading.add_argument("--repo", help="ORG/NAME at the registry's HF_ENDPOINT")
    downloading.add_argument("--revision", help="a commit, branch or tag (default: the catalogue's, or main)")
    downloading.add_argument("--url", default="http://127.0.0.1:8090", help="where the registry answers (%(default)s)")
    commands.add_parser("list", help="list the models in the store")
    return parser


def _import(settings: RegistrySettings, options: argparse.Namespace) -> None:
    library = Library(open_store(settings), settings.load_catalogue())
    entry = library.catalogue.find(options.name)
    name = entry.name if entry else options.name
    repo = options.repo or (entry.hf_repo if entry else f"local/{name}")
    revision = options.revision or (entry.revision if entry else MAIN)
    commit = options.revision if options.revision and COMMIT.fullmatch(options.revision) else None
    with ProgressBar(f"importing {name}", bytes_to_read(options.folder)) as bar:
        manifest = import_folder(
            library, options.folder, name=name, repo=repo, revision=revision, commit=commit, on_bytes=bar.advance
        )
    print(  # noqa: T201  # what this command is for
        f"{name}: {repo} at {manifest.commit[:12]}, {len(manifest.files)} files, {human_bytes(manifest.size)}, "
        f"in {library.store.where}"
    )


def _download(settings: RegistrySettings, options: argparse.Namespace) -> None:
    token = settings.admin_token.get_secret_value() if settings.admin_token else None
    with ProgressBar(f"downloading {options.name}", 0) as bar:
        model = download(options.url, options.name, repo=options.repo, revision=options.revision, token=token, bar=bar)
    print(f"{options.name}: {model['hf_repo']} at {model['commit'][:12]}, {human_bytes(model['size_bytes'])}")  # noqa: T201  # the result


def _list(settings: RegistrySettings, _options: argparse.Namespace) -> None:
    library = Library(open_store(settings), settings.load_catalogue())
    for name in library.names():
        manifest = library.manifest(name.repo, name.commit)
        print(f"{name.name:20} {human_bytes(manifest.size):>10}  {name.repo} at {name.commit[:12]}")  # noqa: T201  # the list
