"""What clients send to the prekey endpoints (contract section 3)."""

from __future__ import annotations

from typing import Literal

from handlers.keys import KyberPrekey, KyberPrekeys, OneTimePrekeys, SignedPrekey
from handlers.shapes import Shape


class BundleQuery(Shape):
    format: Literal["raw", "signal"] = "raw"


class Upload(Shape):
    signed_prekey: SignedPrekey | None = None
    one_time_prekeys: OneTimePrekeys = ()
    kyber_prekeys: KyberPrekeys = ()
    last_resort_kyber_prekey: KyberPrekey | None = None
