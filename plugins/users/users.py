"""Profiles: what others see of a user, and what users change in their own account."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from config.tiers import FREE, Tier
from handlers.alerts import Alerts
from handlers.passwords import Passwords
from handlers.revocations import Revocations
from handlers.tokens import Session
from handlers.wire.avatars import AvatarHosts, avatar_fault
from handlers.wire.errors import Fault, InvalidCredentials, InvalidRequest, NotFound
from handlers.wire.shapes import b64
from models import accounts, files, profiles, subscriptions, users
from models.batch import Batch
from models.chats import sealed
from models.chats.changes import ChatChanges
from models.database import Database, Row
from plugins.users.shapes import MAX_SETTINGS, ChangeMe, OwnProfile, UserProfile

SEARCH_LIMIT = 50  # seed
PRIVACY = "privacy"  # the only key of the settings whose value is merged, too


class Users:
    def __init__(
        self,
        db: Database,
        passwords: Passwords,
        revocations: Revocations,
        changes: ChatChanges,
        alerts: Alerts,
        avatar_hosts: Collection[str],
        tiers: Mapping[str, Tier],
    ) -> None:
        self._db, self._passwords, self._revocations, self._changes = db, passwords, revocations, changes
        self._alerts = alerts
        self._profiles: Batch[tuple[UUID | str, UUID], Row | None] = Batch(partial(profiles.profiles, db))
        self._tiers = tiers
        self._avatars = AvatarHosts(avatar_hosts)

    async def search(self, viewer: UUID, q: str) -> list[dict[str, Any]]:
        """Return a UserSearchItem for each match, the best first."""
        return [dict(row) for row in await profiles.find(self._db, q, viewer, SEARCH_LIMIT)]

    async def profile(self, viewer: UUID, user: UUID | str) -> UserProfile:
        """Return a profile, without presence if that is hidden from the viewer. Raises NotFound."""
        row = await self._profiles.get((user, viewer))
        if row is None:
            raise NotFound("There is no such user.")
        return _profile(row)

    async def me(self, user_id: UUID) -> OwnProfile:
        """Return the profile as its owner sees it. Raises NotFound if the account is gone."""
        row = await profiles.me(self._db, user_id)
        if row is None:
            raise NotFound("There is no such user.")
        tier = await subscriptions.tier(self._db, row["fingerprint"]) or FREE
        return {
            **_profile(row),
            "identity_key": b64(row["identity_key"]),
            "settings": row["settings"],
            "sealed_chat_id": row["sealed_chat_id"],
            "tier": tier,
            "limits": self._tiers[tier].allowance(),
        }

    async def change(self, user_id: UUID, request: ChangeMe) -> OwnProfile:
        """Set the fields that were sent; null clears a field. Raises InvalidRequest, NotFound."""
        changes = {name: getattr(request, name) for name in request.model_fields_set & request.columns}
        avatar = changes.get("avatar_url")
        if avatar is not None:
            await self._check_avatar(user_id, avatar)
        merge = _settings_change(request.settings) if "settings" in request.model_fields_set else None
        if (changes or merge) and not await users.update(self._db, user_id, changes, merge, MAX_SETTINGS):
            await self.me(user_id)  # raises NotFound if the account is gone
            raise InvalidRequest(
                "Some fields are not valid.",
                details=[Fault("settings", f"merged, larger than {MAX_SETTINGS} bytes")],
            )
        if merge:
            self._alerts.visibility(user_id, None)
        if "sealed_access_key" in request.model_fields_set:
            await sealed.set_key(self._changes, user_id, request.sealed_access_key)
        return await self.me(user_id)

    async def _check_avatar(self, user_id: UUID, avatar: str) -> None:
        """Check an avatar_url. Raises InvalidRequest if its host is not allowed or it is not a complete own file."""
        file_id = self._avatars.check(avatar)
        if file_id is not None:
            file = await files.owned(self._db, file_id, user_id)
            if file is None or file["state"] != "complete":
                raise avatar_fault("is not a complete file of yours")

    async def delete(self, session: Session, password: str) -> None:
        """Erase the account (contract section 10). Raises InvalidCredentials."""
        account = await users.credentials_of(self._db, session.user_id)
        if account is None or not await self._passwords.check(
            account.public_id.lower(), account.password_hash, password
        ):
            raise InvalidCredentials
        ended = await accounts.erase(self._changes, account.id)
        if ended is not None:
            self._revocations.announce(ended)


def _settings_change(sent: dict[str, Any] | None) -> users.SettingsChange:
    """Convert a client's settings into a change: null removes a key, and null instead of an object removes all."""
    if sent is None:
        return users.SettingsChange(clear=True)
    put = {key: value for key, value in sent.items() if value is not None and key != PRIVACY}
    privacy = sent.get(PRIVACY)
    if privacy is None:
        return users.SettingsChange(put=put, remove=[key for key, value in sent.items() if value is None])
    return users.SettingsChange(
        put=put,
        remove=[key for key, value in sent.items() if value is None],
        privacy={key: value for key, value in privacy.items() if value is not None},
        privacy_remove=[key for key, value in privacy.items() if value is None],
    )


def _profile(row: Row) -> UserProfile:
    return {
        "user_id": row["id"],
        "public_id": row["public_id"],
        "display_name": row["display_name"],
        "fingerprint": row["fingerprint"],
        "signing_public_key": b64(row["signing_public_key"]),
        "avatar_url": row["avatar_url"],
        "bio": row["bio"],
        "is_online": row["is_online"],
        "last_seen": row["last_seen"],
        "language": row["language"],
        "created_at": row["created_at"],
    }
