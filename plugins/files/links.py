"""Links: signed URLs of this server to upload or download one file, like S3's presigned URLs."""

from __future__ import annotations

import hmac
import time
from urllib.parse import urlencode
from uuid import UUID

from config.keyring import Keyring
from handlers.wire.errors import Forbidden
from models.storage import Link
from plugins.files.shapes import Signed, SignedReading

UPLOAD_SECONDS = 3600  # to begin an upload; as on S3
DOWNLOAD_SECONDS = 300  # to begin a download; as on S3


class Links:
    """Signed with keys derived from the secrets of the access tokens, with which they rotate."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def upload(self, base: str, file_id: UUID, size: int) -> Link:
        expires = int(time.time()) + UPLOAD_SECONDS
        signature = self._keyring.derive("file", _message("PUT", file_id, size, expires)).hex()
        url = f"{base}/uploads/{file_id}?{urlencode({'expires': expires, 'signature': signature})}"
        return Link("PUT", url, {"Content-Type": "application/octet-stream"}, UPLOAD_SECONDS)

    def download(self, base: str, file_id: UUID, reader: UUID) -> Link:
        """Return a URL that downloads a file as ``reader``."""
        expires = int(time.time()) + DOWNLOAD_SECONDS
        signature = self._keyring.derive("file", _message("GET", file_id, reader, expires)).hex()
        query = urlencode({"reader": reader, "expires": expires, "signature": signature})
        url = f"{base}/downloads/{file_id}?{query}"
        return Link("GET", url, {}, DOWNLOAD_SECONDS)

    def check_upload(self, file_id: UUID, size: int, signed: Signed) -> None:
        """Raise Forbidden for an upload URL that is invalid or has expired."""
        self._check(_message("PUT", file_id, size, signed.expires), signed)

    def check_download(self, file_id: UUID, signed: SignedReading) -> None:
        """Raise Forbidden for a download URL that is invalid or has expired."""
        self._check(_message("GET", file_id, signed.reader, signed.expires), signed)

    def _check(self, message: bytes, signed: Signed) -> None:
        good = [hmac.compare_digest(mac.hex(), signed.signature) for mac in self._keyring.derivations("file", message)]
        if not any(good) or signed.expires < time.time():
            raise Forbidden("This URL is invalid or has expired.")


def _message(method: str, file_id: UUID, bound: int | UUID, expires: int) -> bytes:
    """Return the bytes to sign; ``bound`` is the size of an upload, or the reader of a download."""
    return f"{method}|{file_id}|{bound}|{expires}".encode()
