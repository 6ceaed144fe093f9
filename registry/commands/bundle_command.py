"""`registry keygen`, `export`, and bundles given to `import` and `verify`: the sealed bundle from a terminal."""

import argparse
import hashlib
import re
from pathlib import Path

from kit.units import human_bytes
from registry.bundle.export import Export, plan_bundle
from registry.bundle.importing import import_bundle, verify_bundle
from registry.bundle.manifest import Archive, Bundle, BundleError, Image
from registry.bundle.minisign import PublicKey, SecretKey, SignatureError, read_public, read_secret, write_public
from registry.bundle.source import CHUNK
from registry.commands.progress_bar import ProgressBar
from registry.open_store import open_library
from registry.settings import RegistrySettings

EXIT_REFUSED = 1
DEFAULT_VOLUME = 4_000_000_000  # FAT32 takes no larger file than 4 GiB - 1
IMAGES_ARCHIVE, IMAGES_LIST = "images.tar", "images.txt"
_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """The bytes that `4GB` or `700MB` mean. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"([0-9]+)\s*([kMGT]?B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 700MB, 4GB or 25GB")
    return int(match[1]) * _UNITS[match[2] or ""]


def keygen(_settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Make a pair of keys: NAME.key, which signs, and NAME.pub, which checks. Raises BundleError."""
    secret, public = Path(f"{options.output}.key"), Path(f"{options.output}.pub")
    key = SecretKey.generate()
    try:
        if public.exists():
            raise FileExistsError(17, "it exists", str(public))
        key.write(secret)
        write_public(key.public, public)
    except FileExistsError as error:
        raise BundleError(f"{error.filename} exists already, and is not replaced. Choose another --output.") from error
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be written: {error.strerror}.") from error
    _print(f"{secret}  signs bundles: keep it where they are made, and keep it secret")
    _print(f"{public}  checks them: bring it to the other side by another way than the bundle")
    _print(f"The public key: {key.public.text}")


def export(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Write a bundle. Raises BundleError, SignatureError, StoreError, BadName."""
    key = read_secret(options.sign_with)
    library = open_library(settings)
    archive = None if options.images is None else _read_archive(options.images)
    archives = [] if archive is None else [archive]
    plan = plan_bundle(library, options.names, archives, options.volume_size)
    files = {archive.sha256: options.images / IMAGES_ARCHIVE for archive in archives}
    work = Export(plan, options.output, library.store, files)
    with ProgressBar("exporting", work.bytes_left) as bar:
        bundle = work.run(key, bar.advance)
    _tell(bundle, f"{options.output}: {human_bytes(bundle.size)} in {len(bundle.volumes)} volumes")
    _print(f"signed with key {key.id}; check it with: registry verify {options.output} --key {key.public.text}")


def verify(options: argparse.Namespace) -> None:
    """Check every byte of the bundles given. Raises BundleError, SignatureError."""
    key = read_public(options.key)
    for place in options.what:
        with ProgressBar("verifying", _size_of(Path(place))) as bar:
            bundle = verify_bundle(Path(place), key, bar.advance)
        _tell(bundle, f"{place}: every byte is right, signed with key {key.id}, of {bundle.created}")


def import_(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Bring a bundle into the store. Raises BundleError, SignatureError, StoreError."""
    key, place = key_of(options), Path(options.what[0])
    library = open_library(settings)
    with ProgressBar("importing", _size_of(place)) as bar:
        bundle, put = import_bundle(library, place, key, bar.advance)
    here = sum(bundle.blobs().values()) - put
    _tell(bundle, f"in {library.store.where}: {human_bytes(put)} new, {human_bytes(here)} were there")


def key_of(options: argparse.Namespace) -> PublicKey:
    """The public key that was given. Raises SignatureError."""
    if options.key is None:
        raise SignatureError(
            "A bundle is read only against the public key of who made it: --key NAME.pub. "
            "To import a folder as a model: registry import NAME FOLDER."
        )
    return read_public(options.key)


def _read_archive(folder: Path) -> Archive:
    """What `docker save` wrote into `folder`, with the images that it is said to hold."""
    hasher, size = hashlib.sha256(), 0
    try:
        lines = (folder / IMAGES_LIST).read_text().splitlines()
        with (folder / IMAGES_ARCHIVE).open("rb") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
                size += len(chunk)
        images = tuple(Image(name=name, id=image_id) for name, image_id in (line.split() for line in lines))
    except OSError as error:
        raise BundleError(
            f"{error.filename} cannot be read: {error.strerror}. --images wants a folder with both files."
        ) from error
    except ValueError as error:
        raise BundleError(f"{folder / IMAGES_LIST} is to have a line `NAME sha256:ID` for each image.") from error
    return Archive(name=IMAGES_ARCHIVE, size=size, sha256=hasher.hexdigest(), images=images)


def _size_of(place: Path) -> int:
    """About how many bytes there are to read: for the progress bar only."""
    if place.is_dir():
        return sum(file.stat().st_size for file in place.glob("volume-*.tar"))
    return place.stat().st_size if place.exists() else 0


def _tell(bundle: Bundle, what: str) -> None:
    for model in bundle.models:
        pointer, manifest = model.pointer, model.manifest
        _print(f"{pointer.name:20} {human_bytes(manifest.size):>10}  {pointer.repo} at {pointer.commit[:12]}")
    for archive in bundle.archives:
        _print(f"{archive.name:20} {human_bytes(archive.size):>10}  {len(archive.images)} images")
    _print(what)


def _print(line: str) -> None:
    print(line)  # noqa: T201  # what these commands are for
