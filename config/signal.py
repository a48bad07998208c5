"""The profile of Signal keys: which forms of signatures and keys the server accepts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from config.settings import Section


class SignalSettings(Section):
    """The base of the settings of every feature that accepts keys."""

    signal_profile: Literal["any", "libsignal"] = Field(
        "any",
        description="any, or libsignal: signed prekeys must be signed with XEdDSA over 33 bytes, and a "
        "last-resort Kyber key is required. Use libsignal when all your clients are built on it.",
    )

    @property
    def libsignal(self) -> bool:
        return self.signal_profile == "libsignal"
