"""`registry gc`, `registry check` and `registry verify NAME`: maintenance of the store."""

import argparse
import datetime

from kit.net.retry import TransientError
from kit.tools.check_result import report
from registry.bundle.reader import BundleReader
from registry.commands.bundle_command import EXIT_REJECTED, key_of
from registry.commands.progress_bar import ProgressBar
from registry.hub.client import HubError
from registry.models.library import Library
from registry.open_store import open_library
from registry.settings import RegistrySettings
from registry.store.interface import StoreError
from registry.upkeep.gc import collect_garbage
from registry.upkeep.readiness import findings
from registry.upkeep.scrub import (
    Damage,
    bytes_to_read,
    find_damage,
    models_to_read,
    repair_from_bundle,
    repair_from_source,
)


def gc(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Remove garbage, or with --dry-run print what would be removed. Raises StoreError."""
    library = open_library(settings)
    result = collect_garbage(library, min_age_s=settings.presigned_seconds, running=set, dry_run=options.dry_run)
    print(f"{library.store.where}: {result.describe(dry_run=options.dry_run)}")


def check(settings: RegistrySettings, _options: argparse.Namespace) -> None:
    """Print the readiness checks; exits with 1 if one is a problem."""
    library = open_library(settings)
    report(findings(library, datetime.datetime.now(datetime.UTC)))


def verify(settings: RegistrySettings, options: argparse.Namespace) -> None:
    """Verify models and repair them if requested; exits with 1 if damage is left.

    Raises BundleError, SignatureError, StoreError, BadName.
    """
    library = open_library(settings)
    models = models_to_read(library, options.what)
    damages = []
    with ProgressBar("verifying", bytes_to_read(models)) as bar:
        for damage in find_damage(library.store, models, bar.advance):
            damages.append(damage)
            print(f"damaged: {damage}")
    if options.bundle is not None and damages:
        damages = _from_bundle(library, damages, options)
    elif options.repair and damages:
        damages = _from_source(settings, library, damages)
    damaged = {damage.model for damage in damages}
    for name in models:
        print(f"{name:20} {'DAMAGED' if name in damaged else 'verified'}")
    if damages:
        if not options.repair and options.bundle is None:
            print("To repair: --repair (download again), or --from BUNDLE --key PUBLIC_KEY.")
        raise SystemExit(EXIT_REJECTED)


def _from_bundle(library: Library, damages: list[Damage], options: argparse.Namespace) -> list[Damage]:
    reader = BundleReader(options.bundle, key_of(options))
    with ProgressBar("repairing", reader.bundle.size) as bar:
        left = repair_from_bundle(library.store, damages, reader, bar.advance)
    for damage in damages:
        print(f"{f'not in {options.bundle}' if damage in left else 'repaired'}: {damage.file.path} of {damage.model}")
    return left


def _from_source(settings: RegistrySettings, library: Library, damages: list[Damage]) -> list[Damage]:
    left = []
    with settings.source_hub() as hub:
        for damage in damages:
            try:
                repair_from_source(library.store, damage, hub)
                print(f"repaired: {damage.file.path} of {damage.model}")
            except (HubError, TransientError, StoreError) as error:
                left.append(damage)
                print(f"not repaired: {error}")
    return left
