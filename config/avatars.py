"""Avatars: which hosts a picture of a user or a chat may be loaded from."""

from __future__ import annotations

from pydantic import Field

from config.settings import Items, Section


class AvatarSettings(Section):
    """The base of the settings of every feature in which somebody may set an avatar_url."""

    avatar_allowed_hosts: Items = Field((), description="Hosts an avatar_url may name; empty allows any https host.")
