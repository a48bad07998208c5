"""What registering and signing in may be refused for."""

from __future__ import annotations

from handlers.wire.errors import Conflict, Forbidden, Unauthorized


class PublicIdTaken(Conflict):
    code, message = "public_id_taken", "This public id is taken, or an account that had it was deleted lately."


class IdentityKeyTaken(Conflict):
    code = "identity_key_taken"
    message = "This identity key is or was registered. If it is yours, sign the signed prekey with it (XEdDSA)."


class TokenReused(Unauthorized):
    code, message = "token_reused", "The refresh token was used before; the session has ended."


class InvalidProof(Forbidden):
    code, message = "invalid_proof", "The proof is not valid."
