"""`registry keygen` and `export`, and `import` and `verify` of bundles."""

import argparse
import errno
import hashlib
import re
from pathlib import Path

from kit.units import human_bytes
from registry.bundle.export import Export, plan_bundle
from registry.bundle.importing import import_bundle, verify_bundle
from registry.bundle.manifest import Archive, Bundle, BundleError, Image
from registry.bundle.minisign import PublicKey, SecretKey, SignatureError, read_public, read_secret, write_public
from registry.commands.progress_bar import ProgressBar
from registry.open_store import open_library
from registry.settings import RegistrySettings

EXIT_REJECTED = 1
DEFAULT_VOLUME = 4_000_000_000  # the limit of FAT32 is 4 GiB - 1
IMAGES_ARCHIVE, IMAGES_LIST = "images.tar", "images.txt"
_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """Parse a size such as `4GB` or `700MB` into bytes. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"([0-9]+)\s*([kMGT]?B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 700MB, 4GB or 25GB")
    return int(match[1]) * _UNITS[match[2] or ""]


def keygen(_settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Write a key pair, NAME.key (secret) and NAME.pub (public). Raises BundleError."""
    secret, public = Path(f"{options.output}.key"), Path(f"{options.output}.pub")
    key = SecretKey.generate()
    try:
        if public.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(public))
        key.write(secret)
        write_public(key.public, public)
    except FileExistsError as error:
        raise BundleError(f"{error.filename} already exists. Choose another --output.") from error
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be written: {error.strerror}.") from error
    print(f"{secret}  secret key: signs bundles; never copy it to another machine")
    print(f"{public}  public key: verifies bundles; send it to the other site separately from the bundle")
    print(f"Public key: {key.public.text}")


def export(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Write a bundle. Raises BundleError, SignatureError, StoreError, BadName."""
    key = read_secret(options.sign_with)
    library = open_library(settings)
    archives = [] if options.images is None else [_read_archive(options.images)]
    plan = plan_bundle(library, options.names, archives, options.volume_size)
    files = {archive.sha256: options.images / IMAGES_ARCHIVE for archive in archives}
    work = Export(plan, options.output, library.store, files)
    with ProgressBar("exporting", work.bytes_left) as bar:
        bundle = work.run(key, bar.advance)
    _print_contents(bundle, f"{options.output}: {human_bytes(bundle.size)} in {len(bundle.volumes)} volumes")
    print(f"signed with key {key.id}; to verify: registry verify {options.output} --key {key.public.text}")


def verify(options: argparse.Namespace) -> None:
    """Verify bundles: signature and every digest. Raises BundleError, SignatureError."""
    key = read_public(options.key)
    for path in options.what:
        with ProgressBar("verifying", _estimate_size(Path(path))) as bar:
            bundle = verify_bundle(Path(path), key, bar.advance)
        _print_contents(bundle, f"{path}: verified, signed with key {key.id}, created {bundle.created}")


def import_(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Import a bundle into the store. Raises BundleError, SignatureError, StoreError."""
    key, path = key_of(options), Path(options.what[0])
    library = open_library(settings)
    with ProgressBar("importing", _estimate_size(path)) as bar:
        bundle, added = import_bundle(
            library, path, key, bar.advance, settings.policy(), allow_older=options.allow_older
        )
    present = sum(bundle.blobs().values()) - added
    _print_contents(
        bundle, f"in {library.store.where}: {human_bytes(added)} new, {human_bytes(present)} already present"
    )


def key_of(options: argparse.Namespace) -> PublicKey:
    """Read the public key of `--key`. Raises SignatureError."""
    if options.key is None:
        raise SignatureError(
            "A bundle needs the public key of its signer: --key NAME.pub. "
            "To import a folder as a model: registry import NAME FOLDER."
        )
    return read_public(options.key)


def _read_archive(folder: Path) -> Archive:
    """Describe the archive that `docker save` wrote into `folder`; the list of images is taken from images.txt."""
    try:
        lines = (folder / IMAGES_LIST).read_text().splitlines()
        with (folder / IMAGES_ARCHIVE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        images = tuple(Image(name=name, id=image_id) for name, image_id in (line.split() for line in lines))
    except OSError as error:
        raise BundleError(
            f"{error.filename} cannot be read: {error.strerror}. --images needs {IMAGES_ARCHIVE} and {IMAGES_LIST}."
        ) from error
    except ValueError as error:
        raise BundleError(f"{folder / IMAGES_LIST} must have one line `NAME sha256:ID` per image.") from error
    return Archive(name=IMAGES_ARCHIVE, size=size, sha256=digest, images=images)


def _estimate_size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("volume-*.tar"))
    return path.stat().st_size if path.exists() else 0


def _print_contents(bundle: Bundle, last_line: str) -> None:
    for model in bundle.models:
        pointer, manifest = model.pointer, model.manifest
        print(f"{pointer.name:20} {human_bytes(manifest.size):>10}  {pointer.repo} at {pointer.commit[:12]}")
    for archive in bundle.archives:
        print(f"{archive.name:20} {human_bytes(archive.size):>10}  {len(archive.images)} images")
    print(last_line)
