"""Profiles: what one user may see of others, and of themselves."""

from __future__ import annotations

from uuid import UUID

from models.database import Database, Row, like_prefix


def sees_presence(viewer: str) -> str:
    """SQL: whether ``viewer`` (a parameter such as ``$2``) may see the presence of the row of ``users`` at hand.

    Not across a block, whichever way; else as that user's ``settings.privacy.last_seen`` says: ``everyone`` (also when
    unset), ``contacts`` (whom they have verified or share a direct chat with) or ``nobody``.
    """
    return f"""
        (users.id = {viewer} OR (
            NOT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = users.id AND blocked_id = {viewer})
            AND NOT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = {viewer} AND blocked_id = users.id)
            AND CASE users.settings #>> '{{privacy,last_seen}}'
                WHEN 'nobody' THEN false
                WHEN 'contacts' THEN
                    EXISTS (SELECT 1 FROM user_verifications
                            WHERE verifier_id = users.id AND verified_user_id = {viewer})
                    OR EXISTS (SELECT 1 FROM chat_participants mine JOIN chat_participants theirs USING (chat_id)
                               JOIN chat_threads ON chat_threads.id = chat_id AND type = 'direct'
                               WHERE mine.user_id = users.id AND theirs.user_id = {viewer})
                ELSE true END))"""


_COLUMNS = (
    "id, public_id, display_name, fingerprint, signing_public_key, avatar_url, bio, language, settings, created_at"
)
_PROFILE = f"""
SELECT {_COLUMNS}, visible AND is_online AS is_online, CASE WHEN visible THEN last_seen END AS last_seen
FROM users, LATERAL (SELECT {sees_presence("$2::uuid")} AS visible) AS seen
WHERE lower(public_id) = lower($1)
"""


async def profile(db: Database, public_id: str, viewer: UUID) -> Row | None:
    """A user as ``viewer`` may see them: presence is false and null where it is hidden."""
    return await db.row(_PROFILE, public_id, viewer)


async def me(db: Database, user_id: UUID) -> Row | None:
    """A user as they see themselves, with the identity key."""
    return await db.row(f"SELECT {_COLUMNS}, is_online, last_seen, identity_key FROM users WHERE id = $1", user_id)


async def find(db: Database, q: str, viewer: UUID, limit: int) -> list[Row]:
    """Accounts whose public id contains ``q``: the same one first, then those that begin with it, then the rest."""
    return await db.fetch(
        f"""SELECT id AS user_id, public_id, display_name, avatar_url, fingerprint,
                  is_online AND {sees_presence("$4::uuid")} AS is_online
           FROM users WHERE lower(public_id) LIKE '%' || $2
           ORDER BY CASE WHEN lower(public_id) = $1 THEN 0 WHEN lower(public_id) LIKE $2 THEN 1 ELSE 2 END,
                    lower(public_id)
           LIMIT $3""",
        q.lower(),
        like_prefix(q.lower()),
        limit,
        viewer,
    )
