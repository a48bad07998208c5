"""Errors of registration, login, refresh and password reset."""

from __future__ import annotations

from handlers.wire.errors import Conflict, Forbidden, Unauthorized


class PublicIdTaken(Conflict):
    """An account has the public id, or one that was deleted in the last 180 days had it."""

    code, message = "public_id_taken", "This public id is taken, or an account with this id was deleted recently."


class IdentityKeyTaken(Conflict):
    """An account has the identity key, or one that was deleted in the last 180 days had it, and the signed prekey is
    not signed by it."""

    code = "identity_key_taken"
    message = "This identity key is or was registered. If it is yours, use it to sign the signed prekey (XEdDSA)."


class TokenReused(Unauthorized):
    """A refresh token that was used before; its session has ended."""

    code, message = "token_reused", "This refresh token was used before; the session has ended."


class InvalidProof(Forbidden):
    """A password reset whose proof is wrong, expired or used, or whose key is unknown."""

    code, message = "invalid_proof", "The proof is not valid."
