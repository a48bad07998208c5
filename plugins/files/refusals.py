"""What files are refused with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog

from handlers.wire.errors import ApiError, Unavailable
from models.storage import Busy, StorageAway, StorageFull

log = structlog.get_logger(__name__)


class FileTooLarge(ApiError):
    status, code, message = 413, "file_too_large", "The file is larger than your tier allows."


class QuotaExceeded(ApiError):
    status, code, message = 507, "quota_exceeded", "Your files would take more than your tier allows."


class NoRoom(ApiError):
    status, code, message = 507, "storage_full", "The server has no room for more just now."


class NotUploaded(ApiError):
    status, code, message = 409, "not_uploaded", "The file has not been uploaded yet."


class ContentMismatch(ApiError):
    status, code, message = 409, "content_mismatch", "What was uploaded is not what was announced; it is removed."


class OffsetMismatch(ApiError):
    status, code, message = 409, "offset_mismatch", "The upload stands elsewhere; ask where with HEAD."


class AlreadyUploaded(ApiError):
    status, code, message = 412, "already_uploaded", "The file is uploaded; complete it."


class UnsupportedTusVersion(ApiError):
    status, code, message = 412, "unsupported_tus_version", "This server speaks tus 1.0.0: send Tus-Resumable."
    sends = ("Tus-Version",)


class UploadLocked(ApiError):
    status, code, message = 423, "upload_locked", "Another request continues this upload."


class ChecksumMismatch(ApiError):
    """The status is tus's own."""

    status, code, message = 460, "checksum_mismatch", "The bytes are not those of the checksum; they are dropped."


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Tell what a storage raises as what a client is to hear."""
    try:
        yield
    except StorageAway:
        raise Unavailable from None
    except StorageFull:
        log.warning("storage_full")
        raise NoRoom from None
    except Busy:
        raise UploadLocked from None
