"""Storage: where the bytes of files are stored, in a folder of this machine or in an S3 bucket."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from config.settings import Section
from config.values import WebAddress, needs


class StorageSettings(Section):
    """Settings of the servers and of ``scripts.cleanup``. Without an endpoint files are in MIMU_DATA_DIR/files."""

    s3_endpoint: WebAddress | None = Field(
        None,
        description="S3 or MinIO, as this server reaches it: http://minio:9000. Unset: files are kept in "
        "MIMU_DATA_DIR/files. Set it when instances run on more than one machine.",
    )
    s3_public_endpoint: WebAddress | None = Field(
        None, description="S3 or MinIO, as clients reach it: https://files.example.org. Unset: S3_ENDPOINT."
    )
    s3_bucket: str = Field("mimu", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", description="Bucket for the files.")
    s3_region: str = Field(
        "us-east-1", pattern=r"^[a-z0-9-]{1,64}$", description="Region of the bucket. MinIO's is us-east-1."
    )
    s3_path_style: bool = Field(
        True, description="true: URLs are host/bucket/key, as MinIO needs them; false: bucket.host/key, as AWS prefers."
    )
    s3_create_bucket: bool = Field(
        True,
        description="Create the bucket at the start if it is missing. Set false when the key may not create buckets.",
    )
    s3_access_key: Annotated[str | None, needs("s3_endpoint")] = Field(
        None,
        validate_default=True,
        description="Access key that may put, get, delete and list in that bucket. Required with S3_ENDPOINT.",
    )
    s3_secret_key: Annotated[SecretStr | None, needs("s3_endpoint")] = Field(
        None, validate_default=True, description="Secret of that access key. Required with S3_ENDPOINT."
    )
