"""The storage that the settings configure."""

from __future__ import annotations

from pathlib import Path

from config.storage import StorageSettings
from models.storage import Storage
from models.storage.local import LocalStorage
from models.storage.s3 import S3Storage


def storage(settings: StorageSettings, data_dir: Path) -> Storage:
    """Return the storage: S3 if an endpoint is set, else the folder ``files`` of MIMU_DATA_DIR. Open it with
    ``running``."""
    if settings.s3_endpoint is None:
        return LocalStorage(data_dir / "files")
    return S3Storage(settings, data_dir / "spool")


def name(settings: StorageSettings, data_dir: Path) -> str:
    """Return a description of that storage, for operators."""
    if settings.s3_endpoint is None:
        return f"the folder {(data_dir / 'files').absolute()}"
    return f"the bucket {settings.s3_bucket} at {settings.s3_endpoint}"
