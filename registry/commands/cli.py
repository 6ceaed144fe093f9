"""The command line: `registry serve`, `import`, `export`, `verify` and the others; `registry --help` lists them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from kit.config.hub_names import COMMIT, BadName
from kit.config.settings import SettingsError, load_settings
from kit.units import human_bytes
from kit.web.server import fail, run
from registry.bundle.manifest import BundleError
from registry.bundle.minisign import SignatureError
from registry.commands import bundle_command, upkeep_command
from registry.commands.mirror_command import EXIT_NO_REGISTRY, MIRROR_HELP, download, mirror, sizes
from registry.commands.progress_bar import ProgressBar
from registry.commands.registry_client import RegistryClientError, RegistryGone
from registry.download.folder_import import FolderError, bytes_to_read, import_folder
from registry.models.library import MAIN
from registry.open_store import open_library
from registry.settings import RegistrySettings
from registry.store.interface import StoreError

EXIT_USAGE = 2
_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: the program's own) name.

    Exits with a message: 1 for a bundle that is refused, 69 where no registry answers, 78 for other failures.
    """
    options = _parser().parse_args(arguments)
    if options.command in (None, "serve"):
        serve()
        return
    try:
        settings = load_settings(RegistrySettings)
        _COMMANDS[options.command](settings, options)
    except RegistryGone as error:
        sys.stderr.write(f"registry {options.command}: {error}\n")
        raise SystemExit(EXIT_NO_REGISTRY) from None
    except (BundleError, SignatureError) as error:
        sys.stderr.write(f"registry {options.command}: {error}\n")
        raise SystemExit(bundle_command.EXIT_REFUSED) from None
    except (SettingsError, FolderError, RegistryClientError, BadName, StoreError) as error:
        fail(f"registry {options.command}: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. Run the same command again to go on.\n")
        raise SystemExit(130) from None


def serve() -> None:
    """Serve until SIGINT or SIGTERM."""
    from registry.app import create_registry

    run("registry", RegistrySettings, create_registry)


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names only, as do its commands' parsers: a misspelt one is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)


def _parser() -> _Parser:
    parser = _Parser(
        prog="registry",
        description="Models by name, commit and digest. Settings come from the environment: STORE, CATALOGUE, PORT ...",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve models over HTTP (the default)")
    _add_import(commands)
    _add_bundle(commands)
    _add_house(commands)
    downloading = commands.add_parser("download", help="have a running registry mirror a model, and watch it")
    downloading.add_argument("name", help="the model's name; a name of the catalogue needs nothing more")
    downloading.add_argument("--repo", help="ORG/NAME at the registry's HF_ENDPOINT")
    downloading.add_argument("--revision", help="a commit, branch or tag (default: the catalogue's, or main)")
    downloading.add_argument("--url", help="where the registry answers (http://127.0.0.1:PORT)")
    commands.add_parser("list", help="list the models in the store")
    _add_mirror(commands.add_parser("mirror", help="have a running registry mirror the catalogue's models, and verify"))
    sizing = commands.add_parser("sizes", help="tell how large the catalogue's models are, and what is not here yet")
    sizing.add_argument("names", nargs="*", metavar="NAME", help="models of the catalogue (default: all)")
    commands.add_parser("check", help="tell whether the catalogue's models are in the store, and the clock is right")
    return parser


def _add_import(commands: _Commands) -> None:
    importing = commands.add_parser(
        "import",
        help="put a local folder into the store as a model, or a bundle that another registry exported",
        usage="registry import NAME FOLDER [--repo ORG/NAME] [--revision REVISION]\n"
        "       registry import BUNDLE --key PUBLIC_KEY",
    )
    importing.add_argument(
        "what", nargs="+", metavar="NAME FOLDER | BUNDLE", help="a name and the folder of its files; or a bundle"
    )
    importing.add_argument("--repo", help="ORG/NAME that clients load it by (default: the catalogue's, or local/NAME)")
    importing.add_argument(
        "--revision", help="the commit (40 hex digits) that these files are, or a branch or tag to load them by"
    )
    importing.add_argument("--key", metavar="PUBLIC_KEY", help="of who made the bundle: NAME.pub, or the key itself")


def _add_bundle(commands: _Commands) -> None:
    making = commands.add_parser("keygen", help="make the keys that sign bundles and check them")
    making.add_argument("--output", default="bundle", metavar="NAME", help="write NAME.key and NAME.pub (bundle)")
    exporting = commands.add_parser("export", help="write models into a signed bundle, to be carried as files")
    exporting.add_argument("names", nargs="*", metavar="NAME", help="models in the store (default: all)")
    exporting.add_argument(
        "--output", type=Path, required=True, metavar="DIR|FILE.tar", help="a folder of volumes, or one file"
    )
    exporting.add_argument(
        "--sign-with", type=Path, required=True, metavar="FILE", help="NAME.key of `registry keygen`; - is stdin"
    )
    exporting.add_argument(
        "--volume-size",
        type=bundle_command.parse_size,
        default=bundle_command.DEFAULT_VOLUME,
        metavar="SIZE",
        help="the most that one volume takes, such as 700MB (4GB)",
    )
    exporting.add_argument(
        "--images", type=Path, metavar="FOLDER", help="with images.tar of `docker save` and images.txt, NAME ID a line"
    )


def _add_house(commands: _Commands) -> None:
    verifying = commands.add_parser(
        "verify",
        help="read every byte of models, or of a bundle, and compare it with its digest",
        usage="registry verify (NAME ... | --all) [--repair | --from BUNDLE --key PUBLIC_KEY]\n"
        "       registry verify BUNDLE ... --key PUBLIC_KEY",
    )
    verifying.add_argument("what", nargs="*", metavar="NAME | BUNDLE", help="models in the store; bundles with --key")
    verifying.add_argument("--all", action="store_true", help="every model in the store")
    verifying.add_argument(
        "--repair", action="store_true", help="fetch what is damaged again, at its commit, from HF_ENDPOINT"
    )
    verifying.add_argument("--from", dest="bundle", type=Path, metavar="BUNDLE", help="take what is damaged from it")
    verifying.add_argument("--key", metavar="PUBLIC_KEY", help="of who made the bundle: NAME.pub, or the key itself")
    clearing = commands.add_parser("gc", help="remove blobs that no model reaches and no download counts on")
    clearing.add_argument("--dry-run", action="store_true", help="only tell what would be removed")


def _add_mirror(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = MIRROR_HELP.partition("\n\n")[::2]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="models of the catalogue (default: all)")
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="at most N at once; the registry's own JOBS bounds as well"
    )
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not read again what was fetched or was there"
    )
    parser.add_argument("--url", help="where the registry answers (http://127.0.0.1:PORT)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _import(settings: RegistrySettings, options: argparse.Namespace) -> None:
    if len(options.what) == 1 and options.repo is None and options.revision is None:
        bundle_command.import_(settings, options)
    elif len(options.what) == 2 and options.key is None:
        _import_folder(settings, options)
    else:
        sys.stderr.write("registry import takes NAME FOLDER, or BUNDLE --key PUBLIC_KEY. See registry import --help.\n")
        raise SystemExit(EXIT_USAGE)
    if "store" not in settings.model_fields_set:
        print(f"It is in the default store, {settings.store}; STORE names another one: file:FOLDER or s3://BUCKET")  # noqa: T201


def _import_folder(settings: RegistrySettings, options: argparse.Namespace) -> None:
    given, folder = options.what[0], Path(options.what[1])
    library = open_library(settings)
    entry = library.catalogue.find(given)
    name = entry.name if entry else given
    repo = options.repo or (entry.hf_repo if entry else f"local/{name}")
    revision = options.revision or (entry.revision if entry else MAIN)
    commit = options.revision if options.revision and COMMIT.fullmatch(options.revision) else None
    with ProgressBar(f"importing {name}", bytes_to_read(folder)) as bar:
        manifest = import_folder(
            library, folder, name=name, repo=repo, revision=revision, commit=commit, on_bytes=bar.advance
        )
    print(  # noqa: T201  # what this command is for
        f"{name}: {repo} at {manifest.commit[:12]}, {len(manifest.files)} files, {human_bytes(manifest.size)}, "
        f"in {library.store.where}"
    )


def _list(settings: RegistrySettings, _options: argparse.Namespace) -> None:
    library = open_library(settings)
    for name in library.names():
        manifest = library.manifest(name.repo, name.commit)
        print(f"{name.name:20} {human_bytes(manifest.size):>10}  {name.repo} at {name.commit[:12]}")  # noqa: T201  # the list


def _verify(settings: RegistrySettings, options: argparse.Namespace) -> None:
    if options.key is not None and options.bundle is None and options.what and not options.all:
        bundle_command.verify(options)
    elif bool(options.what) != options.all and not upkeep_command.looks_like_bundle(options.what):
        upkeep_command.verify(settings, options)
    else:
        sys.stderr.write(
            "registry verify takes names of models, or --all; or BUNDLE --key PUBLIC_KEY. See registry verify --help.\n"
        )
        raise SystemExit(EXIT_USAGE)


_COMMANDS = {
    "import": _import,
    "keygen": bundle_command.keygen,
    "export": bundle_command.export,
    "verify": _verify,
    "gc": upkeep_command.gc,
    "list": _list,
    "download": download,
    "mirror": mirror,
    "sizes": sizes,
    "check": upkeep_command.check,
}
