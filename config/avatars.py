"""Avatars: the hosts from which clients may load pictures of users and chats."""

from __future__ import annotations

from pydantic import Field

from config.settings import Section
from config.values import Items


class AvatarSettings(Section):
    """The base of the settings of every feature with an avatar_url."""

    avatar_allowed_hosts: Items = Field(
        (),
        description="Hosts that the avatar_url of a user or chat may name, separated by commas. Unset: any https "
        "host. Set it to keep clients from loading pictures from servers you don't know.",
    )
