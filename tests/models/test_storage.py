"""Where bytes lie: keys, settings, and addresses signed as AWS signs them."""

from __future__ import annotations

import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

import server
from config.settings import SettingsError
from config.storage import StorageSettings
from models.storage import Hashes, checked_key, new_key, opened
from models.storage.local import LocalStorage
from models.storage.s3 import S3Storage
from models.storage.sigv4 import Signer

# The example of the Amazon S3 API Reference, "Authenticating Requests: Using Query Parameters".
AWS = Signer(
    "https://s3.amazonaws.com",
    "examplebucket",
    "us-east-1",
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    path_style=False,
)


def test_addresses_are_signed_as_in_amazon_s_own_example() -> None:
    signed = AWS.sign("GET", "test.txt", 86400, now=datetime(2013, 5, 24, tzinfo=UTC))
    assert signed == (
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


def test_a_signer_does_not_show_its_secret() -> None:
    assert "wJalr" not in repr(AWS)


def test_the_bucket_is_in_the_path_or_in_the_name() -> None:
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    path = Signer("https://s3.example.org/store", "files", "x", "a", "s").sign("PUT", "k", 1, now=moment)
    name = Signer("https://s3.example.org", "files", "x", "a", "s", path_style=False).sign("PUT", "k", 1, now=moment)
    assert path.startswith("https://s3.example.org/store/files/k?")
    assert name.startswith("https://files.s3.example.org/k?")


@pytest.mark.parametrize("key", ["", "..", "../" + "a" * 29, "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n", "٣" * 32])
def test_no_path_is_made_of_anything_but_a_key(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a storage key"):
        checked_key(key)
    with pytest.raises(ValueError, match="not a storage key"):
        LocalStorage(tmp_path).path(key)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no priority per thread")
@pytest.mark.gen_test
async def test_threads_that_hash_and_sync_come_after_the_loop(tmp_path: Path) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    storage = LocalStorage(tmp_path)
    async with storage.running():
        own = niceness()
        for threads in (storage.writing, storage.syncing):
            assert await storage.run(niceness, threads) == min(own + 10, 19)
        assert niceness() == own


def test_keys_are_new_and_are_keys() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(checked_key(key) == key for key in keys)


def test_a_hash_goes_on_only_where_it_stopped() -> None:
    hashes = Hashes()
    first = hashes.take("k", 0)
    assert first is not None
    first.update(b"abc")
    hashes.keep("k", 3, first)
    assert hashes.take("k", 2) is None, "and then it is known no more"
    assert hashes.take("k", 3) is None
    hashes.keep("k", 3, first)
    assert hashes.take("k", 3) is first


S3 = {
    "S3_ENDPOINT": "https://s3.example.org",
    "S3_ACCESS_KEY": "key",
    "S3_SECRET_KEY": "wJalrXUtnFEMI-a-secret-of-tests",
}


def test_the_settings_say_which_storage(tmp_path: Path) -> None:
    assert isinstance(opened.storage(StorageSettings(), tmp_path), LocalStorage)
    settings = StorageSettings.model_validate({name.lower(): value for name, value in S3.items()})
    assert isinstance(opened.storage(settings, tmp_path), S3Storage)


@pytest.mark.parametrize(
    ("changed", "faults"),
    [
        ({"S3_ACCESS_KEY": ""}, ["S3_ACCESS_KEY"]),
        ({"S3_ACCESS_KEY": "", "S3_SECRET_KEY": ""}, ["S3_ACCESS_KEY", "S3_SECRET_KEY"]),
        ({"S3_ENDPOINT": "s3.example.org"}, ["S3_ENDPOINT"]),
        ({"S3_ENDPOINT": "https://user:pw@s3.example.org"}, ["S3_ENDPOINT"]),
        ({"S3_PUBLIC_ENDPOINT": "ftp://x"}, ["S3_PUBLIC_ENDPOINT"]),
        ({"S3_BUCKET": "A/B"}, ["S3_BUCKET"]),
        ({"S3_PATH_STYLE": "perhaps"}, ["S3_PATH_STYLE"]),
        ({"TIER_FREE_FILE_BYTES": "many"}, ["TIER_FREE_FILE_BYTES"]),
        ({}, []),
    ],
)
def test_faults_of_the_settings_are_reported(changed: dict[str, str], faults: list[str]) -> None:
    given = {name: value for name, value in {"MIMU_ENV": "development", **S3, **changed}.items() if value}
    said: tuple[str, ...] = ()
    try:
        server.configure(given, make_secrets=False)
    except SettingsError as error:
        said = error.faults
    assert sorted({fault.partition(":")[0] for fault in said}) == faults
    assert S3["S3_SECRET_KEY"] not in "".join(said)
