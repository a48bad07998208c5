"""Errors of registration, login, refresh and password reset."""

from __future__ import annotations

from handlers.wire.errors import Conflict, Forbidden, Unauthorized


class PublicIdTaken(Conflict):
    code, message = "public_id_taken", "This public id is taken, or an account with this id was deleted recently."


class IdentityKeyTaken(Conflict):
    code = "identity_key_taken"
    message = "This identity key is or was registered. If it is yours, use it to sign the signed prekey (XEdDSA)."


class TokenReused(Unauthorized):
    code, message = "token_reused", "This refresh token was used before; the session has ended."


class InvalidProof(Forbidden):
    code, message = "invalid_proof", "The proof is not valid."
