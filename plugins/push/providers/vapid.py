"""Keys: the files that authenticate this server to the providers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from config.values import WebAddress

T = TypeVar("T")


def p256(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key of P-256 from a PEM file, as Apple and scripts/vapid_keys.py create it. Raises ValueError with
    the fault, but without any of the file's contents."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ValueError(f"can't be read ({type(error).__name__})") from None
    except (ValueError, TypeError):
        raise ValueError("not an unencrypted private key in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a key of the curve P-256")
    return key


def public_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key, 65 bytes."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


class Account(BaseModel):
    """A Google service account, in the form of its JSON file."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    project_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:._-]{1,128}$")]
    client_email: str
    private_key: str = Field(repr=False)
    private_key_id: str = ""
    token_uri: WebAddress = "https://oauth2.googleapis.com/token"  # noqa: S105  # a URL


def account(path: Path) -> Account:
    """Read a service account from a file. Raises ValueError with the fault, but without any of the file's contents."""
    try:
        parsed = Account.model_validate_json(path.read_bytes())
        if not isinstance(load_pem_private_key(parsed.private_key.encode(), password=None), RSAPrivateKey):
            raise ValueError
    except OSError as error:
        raise ValueError(f"can't be read ({type(error).__name__})") from None
    except ValidationError as error:
        missing = ", ".join(".".join(map(str, fault["loc"])) or "JSON" for fault in error.errors(include_input=False))
        raise ValueError(f"not a service account: check its {missing}") from None
    except (ValueError, TypeError):
        raise ValueError("not a service account: its private_key is no RSA key in PEM form") from None
    return parsed


def from_file(load: Callable[[Path], T]) -> BeforeValidator:
    """Validator: replace a path with what ``load`` reads from that file, once, with the settings."""
    return BeforeValidator(lambda value: load(Path(value)) if isinstance(value, str) else value)


P256File = Annotated[ec.EllipticCurvePrivateKey | None, from_file(p256)]
AccountFile = Annotated[Account | None, from_file(account)]
