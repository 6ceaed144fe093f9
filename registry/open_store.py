"""Open the store named by the settings."""

from pathlib import Path

from kit.config.settings import SettingsError
from registry.models.library import Library
from registry.settings import RegistrySettings
from registry.store.file_store import FileStore
from registry.store.interface import Store, StoreError


def open_library(settings: RegistrySettings) -> Library:
    """Open the library in that store. Raises SettingsError."""
    quota = None if settings.quota_gb is None else int(settings.quota_gb * 1e9)
    return Library(open_store(settings), settings.load_catalogue(), quota=quota)


def open_store(settings: RegistrySettings) -> Store:
    """Open the store. Raises SettingsError if it cannot be used as configured."""
    scheme, _, place = settings.store.partition(":")
    try:
        if scheme == "file":
            return FileStore(Path(place))
        return _open_s3(settings, place.strip("/"))
    except StoreError as error:
        raise SettingsError(f"STORE={settings.store}: {error}") from error


def _open_s3(settings: RegistrySettings, bucket: str) -> Store:
    from registry.store.s3_store import S3Store  # boto3 is optional: installed only for a store on S3

    if not settings.s3_access_key or settings.s3_secret_key is None:
        raise SettingsError("STORE is on S3: set S3_ACCESS_KEY and S3_SECRET_KEY (or their _FILE variants).")
    return S3Store(
        bucket,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        presigned_s=settings.presigned_seconds,
    )
