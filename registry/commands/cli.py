"""The command line `registry`: argument parser and dispatch."""

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
from registry.bundle.source import FILE_SUFFIX
from registry.commands import bundle_command, upkeep_command
from registry.commands.mirror_command import EXIT_NO_REGISTRY, MIRROR_HELP, download, mirror, sizes
from registry.commands.progress_bar import ProgressBar
from registry.commands.registry_client import RegistryClientError, RegistryGone
from registry.download.folder_import import FolderError, bytes_to_read, import_folder
from registry.models.library import MAIN
from registry.models.manifest import summary
from registry.open_store import open_library
from registry.safety.policy import Refused
from registry.settings import RegistrySettings
from registry.store.interface import StoreError

EXIT_USAGE = 2
_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"
_URL_HELP = "the registry's URL (default: http://127.0.0.1:PORT)"
_KEY_HELP = "the signer's public key: a file NAME.pub, or the key itself"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command named by `arguments` (default: sys.argv).

    Exit codes: 1 a bundle is rejected, 69 the registry cannot be reached, 78 other failures.
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
        raise SystemExit(bundle_command.EXIT_REJECTED) from None
    except (SettingsError, FolderError, Refused, RegistryClientError, BadName, StoreError) as error:
        fail(f"registry {options.command}: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Run the same command again to resume.\n")
        raise SystemExit(130) from None


def serve() -> None:
    """Serve until SIGINT or SIGTERM."""
    from registry.app import create_registry

    run("registry", RegistrySettings, create_registry)


class _Parser(argparse.ArgumentParser):
    """Accepts no abbreviated options, in subcommands neither, so that a misspelt option is an error."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)


def _parser() -> _Parser:
    parser = _Parser(
        prog="registry",
        description="Mirror, verify and serve models. registry/settings.py documents the environment variables.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="run the HTTP server (the default)")
    _add_import(commands)
    _add_bundle(commands)
    _add_upkeep(commands)
    download_parser = commands.add_parser("download", help="mirror a model through a running registry")
    download_parser.add_argument("name", help="the model's name; one of the catalogue needs no --repo")
    download_parser.add_argument("--repo", help="ORG/NAME at the registry's HF_ENDPOINT")
    download_parser.add_argument("--revision", help="a commit, branch or tag (default: the catalogue's, or main)")
    download_parser.add_argument("--url", help=_URL_HELP)
    commands.add_parser("list", help="list the models in the store")
    _add_mirror(
        commands.add_parser("mirror", help="mirror and verify the catalogue's models through a running registry")
    )
    sizes_parser = commands.add_parser("sizes", help="print the size of the catalogue's models and the missing bytes")
    sizes_parser.add_argument("names", nargs="*", metavar="NAME", help="models of the catalogue (default: all)")
    commands.add_parser("check", help="check that the store has the catalogue's models and that the clock is right")
    return parser


def _add_import(commands: _Commands) -> None:
    parser = commands.add_parser(
        "import",
        help="import a local folder as a model, or a bundle exported by another registry",
        usage="registry import NAME FOLDER [--repo ORG/NAME] [--revision REVISION]\n"
        "       registry import BUNDLE --key PUBLIC_KEY [--allow-older]",
    )
    parser.add_argument(
        "what", nargs="+", metavar="NAME FOLDER | BUNDLE", help="a name and the folder of its files; or a bundle"
    )
    parser.add_argument("--repo", help="ORG/NAME for clients (default: the catalogue's, or local/NAME)")
    parser.add_argument("--revision", help="the commit (40 hex digits), branch or tag of these files")
    parser.add_argument("--key", metavar="PUBLIC_KEY", help=_KEY_HELP)
    parser.add_argument(
        "--allow-older", action="store_true", help="import a bundle whose models are older than those in the store"
    )


def _add_bundle(commands: _Commands) -> None:
    keygen_parser = commands.add_parser("keygen", help="create a key pair for signing bundles")
    keygen_parser.add_argument(
        "--output", default="bundle", metavar="NAME", help="write NAME.key and NAME.pub (default: bundle)"
    )
    parser = commands.add_parser("export", help="write models into a signed bundle of files")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models in the store (default: all)")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR|FILE.tar", help="a folder of volumes, or one tar file"
    )
    parser.add_argument(
        "--sign-with", type=Path, required=True, metavar="FILE", help="the secret key NAME.key; - reads stdin"
    )
    parser.add_argument(
        "--volume-size",
        type=bundle_command.parse_size,
        default=bundle_command.DEFAULT_VOLUME,
        metavar="SIZE",
        help="maximum size of a volume, such as 700MB (default: 4GB)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder with images.tar (`docker save`) and images.txt (a line `NAME ID` per image)",
    )


def _add_upkeep(commands: _Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="verify the digests of models in the store, or of a bundle",
        usage="registry verify (NAME ... | --all) [--repair | --from BUNDLE --key PUBLIC_KEY]\n"
        "       registry verify BUNDLE ... --key PUBLIC_KEY",
    )
    parser.add_argument("what", nargs="*", metavar="NAME | BUNDLE", help="models in the store; bundles with --key")
    parser.add_argument("--all", action="store_true", help="every model in the store")
    parser.add_argument("--repair", action="store_true", help="download damaged files again from HF_ENDPOINT")
    parser.add_argument("--from", dest="bundle", type=Path, metavar="BUNDLE", help="repair damaged files from a bundle")
    parser.add_argument("--key", metavar="PUBLIC_KEY", help=_KEY_HELP)
    gc_parser = commands.add_parser("gc", help="remove blobs that no model and no download references")
    gc_parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")


def _add_mirror(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = MIRROR_HELP.partition("\n\n")[::2]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="models of the catalogue (default: all)")
    parser.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="maximum of parallel downloads; at most the registry's JOBS (REGISTRY_JOBS in .env)",
    )
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="skip the verification in the store")
    parser.add_argument("--url", help=_URL_HELP)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _import(settings: RegistrySettings, options: argparse.Namespace) -> None:
    if len(options.what) == 1 and options.repo is None and options.revision is None:
        bundle_command.import_(settings, options)
    elif len(options.what) == 2 and options.key is None and not options.allow_older:
        _import_folder(settings, options)
    else:
        sys.stderr.write(
            "Usage: registry import NAME FOLDER, or BUNDLE --key PUBLIC_KEY. See registry import --help.\n"
        )
        raise SystemExit(EXIT_USAGE)
    if "store" not in settings.model_fields_set:
        print(f"Stored in the default store {settings.store}. Set STORE to use another: file:FOLDER or s3://BUCKET")


def _import_folder(settings: RegistrySettings, options: argparse.Namespace) -> None:
    name_or_alias, folder = options.what[0], Path(options.what[1])
    library = open_library(settings)
    entry = library.catalogue.find(name_or_alias)
    name = entry.name if entry else name_or_alias
    repo = options.repo or (entry.hf_repo if entry else f"local/{name}")
    revision = options.revision or (entry.revision if entry else MAIN)
    commit = options.revision if options.revision and COMMIT.fullmatch(options.revision) else None
    with ProgressBar(f"importing {name}", bytes_to_read(folder)) as bar:
        manifest = import_folder(
            library, folder, name=name, repo=repo, revision=revision, commit=commit, policy=settings.policy(),
            on_bytes=bar.advance,
        )  # fmt: skip
    print(
        f"{name}: {repo} at {manifest.commit[:12]}, {len(manifest.files)} files, {human_bytes(manifest.size)}, "
        f"in {library.store.where}"
    )
    if manifest.left_out:
        print(f"left out: {summary(manifest.left_out)}")


def _list(settings: RegistrySettings, _options: argparse.Namespace) -> None:
    library = open_library(settings)
    for name in library.names():
        manifest = library.manifest(name.repo, name.commit)
        print(f"{name.name:20} {human_bytes(manifest.size):>10}  {name.repo} at {name.commit[:12]}")


def _verify(settings: RegistrySettings, options: argparse.Namespace) -> None:
    has_bundle = any("/" in word or word.endswith(FILE_SUFFIX) for word in options.what)
    if options.key is not None and options.bundle is None and options.what and not options.all:
        bundle_command.verify(options)
    elif bool(options.what) != options.all and not has_bundle:
        upkeep_command.verify(settings, options)
    else:
        sys.stderr.write("Usage: registry verify NAME ..., --all, or BUNDLE --key PUBLIC_KEY. See --help.\n")
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
