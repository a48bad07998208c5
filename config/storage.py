"""Storage: where the bytes of files lie, a folder of this machine or an S3 bucket."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator

from config.settings import Section


def _endpoint(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in value:
        raise ValueError("expected https://host:port")
    return value.rstrip("/")


Endpoint = Annotated[str, AfterValidator(_endpoint)]


class StorageSettings(Section):
    """Read by the servers and by ``scripts.cleanup``. Without an endpoint files lie in MIMU_DATA_DIR/files."""

    s3_endpoint: Endpoint | None = Field(None, description="S3 or MinIO, as this server reaches it; unset: local disk.")
    s3_public_endpoint: Endpoint | None = Field(None, description="The same, as clients reach it; unset: S3_ENDPOINT.")
    s3_bucket: str = Field("mimu", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", description="Bucket of the files.")
    s3_region: str = Field("us-east-1", pattern=r"^[a-z0-9-]{1,64}$", description="Its region; MinIO's is us-east-1.")
    s3_path_style: bool = Field(True, description="host/bucket/key, as MinIO has it; false: bucket.host/key.")
    s3_create_bucket: bool = Field(True, description="Make the bucket at the start if it isn't there.")
    s3_access_key: str | None = Field(None, validate_default=True, description="Access key.")
    s3_secret_key: SecretStr | None = Field(None, validate_default=True, description="Its secret.")

    @field_validator("s3_access_key", "s3_secret_key")
    @classmethod
    def _whole(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("s3_endpoint"):
            raise ValueError("missing; with S3_ENDPOINT it is needed")
        return value
