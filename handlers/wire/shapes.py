"""Shapes: strict JSON, and the field types of all requests and answers."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import SplitResult
from uuid import UUID

import orjson

# asyncpg's subclass of UUID, which rows contain. It hashes, compares and prints in native code; ids are the keys of
# most dictionaries, and the standard class costs 4 us more for each message.
from asyncpg.pgproto.pgproto import UUID as NativeUUID
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

from config.urls import split_web
from handlers.wire.errors import Fault, InvalidRequest

MAX_DEPTH = 32  # contract section 1
MAX_INT32 = 2**31 - 1  # the largest value of an INTEGER column and of a Signal id


class Shape(BaseModel):
    """A type of requests or answers. Unknown fields are ignored, wrong types are errors (contract section 1)."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


def decode(raw: bytes | str) -> Any:
    """Decode strict JSON: UTF-8 only; no NaN, Infinity, NUL or lone surrogate; at most MAX_DEPTH levels.

    Raises InvalidRequest.
    """
    value = parse(raw)
    check_strings_and_depth(raw, value)
    return value


def parse(raw: bytes | str) -> Any:
    """Parse JSON, without the checks of ``check_strings_and_depth``. Raises InvalidRequest."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidRequest("The body is not valid JSON.", details=[Fault("body", "not valid JSON")]) from None


def check_strings_and_depth(raw: bytes | str, value: Any) -> None:
    """Reject NUL in strings, and nesting deeper than MAX_DEPTH. Raises InvalidRequest."""
    # Both counts are upper bounds that cost half a microsecond; only the rare text that exceeds them is walked.
    if isinstance(raw, str):
        suspect = "\\u0000" in raw or raw.count("{") + raw.count("[") > MAX_DEPTH
    else:
        suspect = b"\\u0000" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH
    if suspect:
        _walk(value, 1)


def _walk(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidRequest("The body is not valid.", details=[Fault("body", "a string contains NUL")])
    elif isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            issue = f"nested deeper than {MAX_DEPTH} levels"
            raise InvalidRequest("The body is not valid.", details=[Fault("body", issue)])
        for item in value.values() if isinstance(value, dict) else value:
            _walk(item, depth + 1)
        if isinstance(value, dict):
            for key in value:
                _walk(key, depth)


def encode(value: Any) -> bytes:
    """Encode JSON with UUIDs as text, times as RFC 3339 in UTC with ``Z``, and bytes as standard base64."""
    return orjson.dumps(value, default=_text, option=orjson.OPT_UTC_Z)


def _text(value: object) -> str:
    if isinstance(value, UUID):  # a NativeUUID, which orjson does not know
        return str(value)
    if isinstance(value, bytes):
        return b64(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def timestamp(moment: datetime) -> str:
    """Format a time as RFC 3339 in UTC with ``Z``."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def b64(value: bytes) -> str:
    """Encode bytes as standard base64 with padding, the only form in answers."""
    return base64.b64encode(value).decode()


_STANDARD = re.compile(r"[A-Za-z0-9+/]*={0,2}", re.ASCII)


def unb64(value: Any) -> Any:
    """Decode standard or URL-safe base64, padded or not. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("expected base64 text")
    if len(value) % 4 == 0 and not ("-" in value or "_" in value or "=" in value[:-2]):  # the usual form
        return _decoded(value)
    text = value.replace("-", "+").replace("_", "/")
    if not _STANDARD.fullmatch(text):
        raise ValueError("not valid base64")
    bare = text.rstrip("=")
    if len(text) != len(bare) and len(text) % 4:
        raise ValueError("not valid base64: wrong padding")
    return _decoded(bare + "=" * (-len(bare) % 4))


def _decoded(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise ValueError("not valid base64") from None


def _curve_key(value: bytes) -> bytes:
    if len(value) == 33 and value[0] == 0x05:  # Signal's form: a type byte, then the key
        value = value[1:]
    if len(value) != 32:
        raise ValueError("a public key is 32 bytes, or 33 with a leading 0x05")
    return value


def _signature(value: bytes) -> bytes:
    if len(value) != 64:
        raise ValueError("a signature is 64 bytes")
    return value


class _Base64:
    """The JSON schema of bytes that are sent as base64: bounds of bytes become bounds of text."""

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if handler.mode == "serialization":
            return dict(STANDARD)
        least, most = (handler(core).get(name) for name in ("minLength", "maxLength"))
        bounds = {"minLength": least and -(-least * 4 // 3), "maxLength": most and -(-most // 3) * 4}
        return {**ANY, **{name: bound for name, bound in bounds.items() if bound}}


_SIGN, _GIVEN = "[A-Za-z0-9+/_-]", "[A-Za-z0-9+/]"
ANY = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "Base64, standard or URL-safe, padded or not.",
    "pattern": f"^({_SIGN}{{4}})*({_SIGN}{{2}}(==)?|{_SIGN}{{3}}=?)?$",
}
STANDARD = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "Base64, standard and padded.",
    "pattern": f"^({_GIVEN}{{4}})*({_GIVEN}{{2}}==|{_GIVEN}{{3}}=)?$",
}


def base64_schema(words: str, pattern: str) -> WithJsonSchema:
    """Return the schema of input bytes of a certain length, as base64 in any form."""
    pattern = pattern.replace("@", _SIGN)
    return WithJsonSchema({**ANY, "description": words, "pattern": pattern}, mode="validation")


Base64 = Annotated[bytes, BeforeValidator(unb64), PlainSerializer(b64, return_type=str), _Base64()]
EncodedBase64 = Annotated[str, WithJsonSchema(STANDARD)]  # bytes that were encoded before the answer is made
PublicKey = Annotated[
    Base64,
    AfterValidator(_curve_key),
    base64_schema("Base64 of 32 bytes, or of 33 with a leading 0x05 (Signal's form).", "^(@{43}=?|B[Q-Za-f]@{42})$"),
]
Signature = Annotated[Base64, AfterValidator(_signature), base64_schema("Base64 of 64 bytes.", "^@{86}(==)?$")]


def read_uuid(value: Any) -> UUID:
    """Parse a UUID with all its hyphens or none, as a NativeUUID. Raises ValueError."""
    # NativeUUID would accept hyphens anywhere.
    if isinstance(value, str) and (
        (len(value) == 36 and value[8:24:5] == "----") or (len(value) == 32 and "-" not in value)
    ):
        try:
            return NativeUUID(value)
        except ValueError:  # its message contains the value
            raise ValueError("expected a UUID") from None
    if isinstance(value, UUID):  # in the server's answers
        return value
    raise ValueError("expected a UUID")


Id = Annotated[
    UUID,
    PlainValidator(read_uuid),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "uuid"}),
]
IdText = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]  # what was made text before it is sent
Moment = Annotated[
    datetime,
    PlainSerializer(timestamp, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _moment(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
            timestamp(value)
        except (ValueError, OverflowError):
            raise ValueError("must be an RFC 3339 time") from None
        if value.tzinfo is None:
            raise ValueError("must have an offset from UTC, or Z")
    return value


TimeWithOffset = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(timestamp, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "A time with its offset from UTC, or Z."}),
]
Int31 = Annotated[int, Field(ge=0, le=MAX_INT32)]
Hex256 = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-fA-F]{64}$"),
    AfterValidator(str.lower),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}$"}, mode="serialization"),
]
PublicId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_]{3,32}$"), Field(description="Unique regardless of case.")
]


# A user in the pattern of a route, by public id or by user id.
USER = "([A-Za-z0-9_]{3,32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"


@dataclass(frozen=True, slots=True)
class PartOfPath:
    """The parser of a part of a path."""

    read: Callable[[str], Any]


def user_ref(text: str) -> UUID | str:
    """Return a user id if the text has 36 characters, in any case; else a public id."""
    return UUID(text) if len(text) == 36 else text


UserRef = Annotated[
    UUID | str,
    PartOfPath(user_ref),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^{USER}$",
            "description": "A public id in any case, or a user id in its form with 36 characters.",
        }
    ),
]


def https_parts(value: str) -> SplitResult:
    """The parts of an https URL that a client sent. Raises ValueError for what is none."""
    parts = split_web(value, "https")
    if parts is None:
        raise ValueError("must be an https address")
    return parts


def plain_https(value: str) -> str:
    """Check a URL that clients may load without revealing more than the request. Raises ValueError."""
    parts = https_parts(value)
    if "@" in parts.netloc:
        raise ValueError("must not contain user information")
    if _is_address(parts.hostname or ""):
        raise ValueError("must have a host name, not an IP address")
    return value


def _is_address(host: str) -> bool:
    """True if browsers read the host as an IP address; also ``127.1`` and ``0x7f000001``."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        return last.isdecimal() or last.startswith("0x")
    return True


# The pattern in the schema; plain_https accepts some more.
HTTPS = r"^https://([A-Za-z0-9-]+\.)*[A-Za-z][A-Za-z0-9-]*(:[0-9]{1,4})?([/?#][!-~]*)?$"
HttpsUrl = Annotated[
    str,
    StringConstraints(max_length=2048),
    AfterValidator(plain_https),
    Field(
        description="https, a host name, no user information.",
        json_schema_extra={"pattern": HTTPS},
    ),
]


def max_json_bytes(most: int) -> AfterValidator:
    """Return a validator: the JSON of an object may have at most ``most`` bytes."""

    def check(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and len(encode(value)) > most:
            raise ValueError(f"larger than {most} bytes")
        return value

    return AfterValidator(check)


# The syntax of BCP 47; the server does not check that the language exists.
Language = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,6}$"),
    AfterValidator(lambda value: value.replace("_", "-")),
    Field(description="BCP 47; the form `ru_RU` of some systems is read as `ru-RU`."),
]
