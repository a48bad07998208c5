"""Links: addresses of our own that let whoever has one upload one file, as S3's signed addresses do."""

from __future__ import annotations

import hmac
import time
from urllib.parse import urlencode
from uuid import UUID

from config.keyring import Keyring
from handlers.errors import Forbidden
from models.storage import Link
from plugins.files.shapes import Signed

SECONDS = 3600  # to begin with; as on S3


class Links:
    """Signed under the secrets of the access tokens, in a domain of their own: they rotate together."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def upload(self, base: str, file_id: UUID, size: int) -> Link:
        expires = int(time.time()) + SECONDS
        signature = self._keyring.derive("file", _message("PUT", file_id, size, expires)).hex()
        url = f"{base}/uploads/{file_id}?{urlencode({'expires': expires, 'signature': signature})}"
        return Link("PUT", url, {"Content-Type": "application/octet-stream"}, SECONDS)

    def check(self, method: str, file_id: UUID, size: int, signed: Signed) -> None:
        """Raises Forbidden for an address that we didn't sign, or that has run out."""
        message = _message(method, file_id, size, signed.expires)
        good = [hmac.compare_digest(mac.hex(), signed.signature) for mac in self._keyring.derivations("file", message)]
        if not any(good) or signed.expires < time.time():
            raise Forbidden("The address is not one of ours, or it has run out.")


def _message(method: str, file_id: UUID, size: int, expires: int) -> bytes:
    return f"{method}|{file_id}|{size}|{expires}".encode()
