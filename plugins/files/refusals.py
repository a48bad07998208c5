"""Errors of uploads and downloads."""

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
    """The disk is full; stored files stay."""

    status, code, message = 507, "storage_full", "The server's storage is full. Try again later."


class NotUploaded(ApiError):
    """A file to be completed of which nothing is there, or not all."""

    status, code, message = 409, "not_uploaded", "The file has not been uploaded yet."


class ContentMismatch(ApiError):
    """The file is not what was announced. It is removed, and its id is no longer valid."""

    status, code, message = 409, "content_mismatch", "The file differs from its announcement and was deleted."


class OffsetMismatch(ApiError):
    """A resumable upload has another offset."""

    status, code, message = 409, "offset_mismatch", "The offset is not that of the upload. Send HEAD to get it."


class AlreadyUploaded(ApiError):
    """The file is uploaded already; complete it."""

    status, code, message = 412, "already_uploaded", "The file is uploaded already. Complete it."


class UnsupportedTusVersion(ApiError):
    """The header `Tus-Resumable: 1.0.0` is missing."""

    status, code, message = 412, "unsupported_tus_version", "Send the header Tus-Resumable: 1.0.0."
    sends = ("Tus-Version",)


class UploadLocked(ApiError):
    """Another request still writes the upload."""

    status, code, message = 423, "upload_locked", "Another request continues this upload."


class ChecksumMismatch(ApiError):
    """A piece of an upload that does not match `Upload-Checksum`. The status is defined by tus."""

    status, code, message = 460, "checksum_mismatch", "The bytes do not match the checksum and were dropped."


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Convert a storage's exceptions to API errors."""
    try:
        yield
    except StorageAway:
        raise Unavailable from None
    except StorageFull:
        log.warning("storage_full")
        raise NoRoom from None
    except Busy:
        raise UploadLocked from None
