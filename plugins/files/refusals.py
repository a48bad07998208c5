"""What files are refused with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog

from handlers.wire.errors import ApiError, Unavailable
from models.storage import Busy, StorageAway, StorageFull

log = structlog.get_logger(__name__)


class FileTooLarge(ApiError):
    """A file larger than the owner's tier allows."""

    status, code, message = 413, "file_too_large", "The file is larger than your tier allows."


class QuotaExceeded(ApiError):
    """The owner's files would take more than their tier allows."""

    status, code, message = 507, "quota_exceeded", "Your files would take more than your tier allows."


class NoRoom(ApiError):
    """The disk is full; what was there stays."""

    status, code, message = 507, "storage_full", "The server has no room for more just now."


class NotUploaded(ApiError):
    """A file to be completed of which nothing is there, or not all."""

    status, code, message = 409, "not_uploaded", "The file has not been uploaded yet."


class ContentMismatch(ApiError):
    """The file is not what was announced. It is removed, and its id is no longer valid."""

    status, code, message = 409, "content_mismatch", "What was uploaded is not what was announced; it is removed."


class OffsetMismatch(ApiError):
    """A resumable upload stands elsewhere."""

    status, code, message = 409, "offset_mismatch", "The upload stands elsewhere; ask where with HEAD."


class AlreadyUploaded(ApiError):
    """The file is there; complete it."""

    status, code, message = 412, "already_uploaded", "The file is uploaded; complete it."


class UnsupportedTusVersion(ApiError):
    """No `Tus-Resumable: 1.0.0`."""

    status, code, message = 412, "unsupported_tus_version", "This server speaks tus 1.0.0: send Tus-Resumable."
    sends = ("Tus-Version",)


class UploadLocked(ApiError):
    """Another request still writes the upload."""

    status, code, message = 423, "upload_locked", "Another request continues this upload."


class ChecksumMismatch(ApiError):
    """A piece of an upload that is not what `Upload-Checksum` says. The status is that of tus."""

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
