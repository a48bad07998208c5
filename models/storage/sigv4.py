"""SigV4: S3 requests signed in their URLs, with every header and parameter that must not be changed.

AWS Signature Version 4, with the signature in the query: Amazon S3 API Reference, "Authenticating Requests:
Using Query Parameters".
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"


def _quote(text: str, safe: str = "") -> str:
    return quote(text, safe=safe + "-_.~")


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs for one bucket at one endpoint. The signature covers the host, so each endpoint has a Signer."""

    endpoint: str  # https://s3.example.org, or with a path before the bucket's
    bucket: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    path_style: bool = True

    def sign(
        self,
        method: str,
        key: str,
        seconds: int,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        now: datetime | None = None,
    ) -> str:
        """Return a URL that allows ``method`` on the object ``key`` (the bucket if empty) for ``seconds``, with exactly
        these headers and parameters."""
        moment = now or datetime.now(UTC)
        stamp, day = moment.strftime("%Y%m%dT%H%M%SZ"), moment.strftime("%Y%m%d")
        parts = urlsplit(self.endpoint)
        host = parts.netloc if self.path_style else f"{self.bucket}.{parts.netloc}"
        path = parts.path.rstrip("/") + (f"/{self.bucket}" if self.path_style else "")
        path = _quote(f"{path}/{key}" if key or not path else path, "/")
        signed = {"host": host, **{name.lower(): value.strip() for name, value in (headers or {}).items()}}
        names = ";".join(sorted(signed))
        scope = f"{day}/{self.region}/s3/aws4_request"
        parameters = {
            **(query or {}),
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{self.access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": names,
        }
        query_text = "&".join(sorted(f"{_quote(name)}={_quote(value)}" for name, value in parameters.items()))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        canonical = f"{method}\n{path}\n{query_text}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        signature = hmac.new(self._key(day), text.encode(), "sha256").hexdigest()
        return f"{parts.scheme}://{host}{path}?{query_text}&X-Amz-Signature={signature}"

    def _key(self, day: str) -> bytes:
        key = f"AWS4{self.secret_key}".encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key
