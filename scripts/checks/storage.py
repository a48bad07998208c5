"""Storage: a file put, read and removed again, on the local disk or in the bucket, as the server and clients do it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import ssl
import stat
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from config.findings import Examination, Finding, StopExamination, clock, good, skipped, weak, wrong
from config.settings import Core
from config.storage import StorageSettings
from models.storage import Busy, Link, PendingUpload, StorageAway, StorageFull, new_key
from models.storage.local import LocalStorage
from models.storage.requests import FAILED, S3Response
from models.storage.s3 import S3Storage
from scripts.checks.asking import HTTP_TIMEOUT, Failed, HttpResponse, ask, seconds_ahead
from scripts.checks.disk import room

SIZE = 100_000  # bytes of the test file
RANGE = (1_000, 2_999)  # of its bytes, the first and the last

DISK = ("folder", "owner", "round trip", "room")
BUCKET = (
    "reachable",
    "clock",
    "round trip",
    "list",
    "resumable",
    "public upload",
    "public download",
    "privacy",
    "cors",
)


def examination(core: Core, settings: StorageSettings, origins: tuple[str, ...]) -> Examination:
    if settings.s3_endpoint is None:
        folder = core.mimu_data_dir / "files"
        return Examination("storage", "Storage of files (local disk)", DISK, lambda: _disk(folder))
    spool = core.mimu_data_dir / "spool"
    return Examination("storage", "Storage of files (S3)", BUCKET, lambda: _Bucket(settings, spool, origins).look())


async def _disk(folder: Path) -> AsyncIterator[Finding]:
    found, there = _folder(folder)
    for finding in found:
        yield finding
    if not there:
        raise StopExamination("the folder does not exist, or is not ours")
    yield await _round_trip(folder)
    yield room("room", folder)


def _folder(folder: Path) -> tuple[list[Finding], bool]:
    """Return findings for the folder, and True if a test file can be written to it."""
    if not folder.exists():
        above = next(path for path in folder.absolute().parents if path.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            return [
                wrong("folder", f"{folder} can't be created.", f"Create it, or let this user write to {above}.")
            ], False
        # If we made it, it might belong to the wrong user.
        return [good("folder", f"{folder} does not exist yet; the server makes it when it starts.")], False
    try:
        held = folder.stat()
    except OSError as error:
        says = f"{folder} can't be read ({type(error).__name__})."
        return [wrong("folder", says, "Give it to the server's user.")], False
    if not stat.S_ISDIR(held.st_mode):
        return [wrong("folder", f"{folder} is no folder.", "Move this file away.")], False
    found = [good("folder", f"{folder} exists."), good("owner", "It belongs to this user.")]
    if held.st_mode & stat.S_IRWXO:
        says = f"{folder} is open to every user of this machine ({stat.S_IMODE(held.st_mode):04o})."
        found[0] = weak("folder", says, f"Run: chmod 700 {folder}")
    if held.st_uid != os.geteuid():
        says = f"{folder} belongs to user {held.st_uid}, and this is user {os.geteuid()}."
        found[1] = weak("owner", says, "Run the doctor as the server's user, or give the folder to that user.")
    return found, True


async def _round_trip(folder: Path) -> Finding:
    storage, key, content = LocalStorage(folder), new_key(), secrets.token_bytes(SIZE)
    place = PendingUpload(key, SIZE, resumable=True)
    beside = storage.path(key).parent
    made = not beside.exists()
    try:
        async with storage.running():
            try:
                writer = await storage.writer(place)
                await writer.write([content])
                progress = await writer.pause()
                await writer.close(noted=False)
                size = await storage.settle(place._replace(received=progress.received))
                async with storage.content(key, "GET") as reader:
                    piece = await reader.read(RANGE[0], RANGE[1] - RANGE[0] + 1)
                digest = await storage.digest(key)
            finally:
                await storage.remove(key, None)
                if made and beside.exists():
                    beside.rmdir()
    except StorageFull:
        return wrong("round trip", "The disk is full.", "Free space on it.")
    except (StorageAway, Busy, OSError) as error:
        says = (
            f"A file can't be written and read ({error if isinstance(error, StorageAway) else type(error).__name__})."
        )
        return wrong("round trip", says, "Check the owner of the folder, and that the disk is not mounted read-only.")
    whole = (size, piece, digest) == (SIZE, content[RANGE[0] : RANGE[1] + 1], hashlib.sha256(content).digest())
    if not whole:
        return wrong("round trip", "The bytes read differ from the bytes written.", "Check the disk: smartctl, dmesg.")
    return good("round trip", "A file was written, read, checked and removed.")


class _Bucket:
    """Checks of a bucket with a test file, as the server and as a client."""

    def __init__(self, settings: StorageSettings, spool: Path, origins: tuple[str, ...]) -> None:
        self._settings, self._origins = settings, origins
        self._storage = S3Storage(settings, spool)

    async def look(self) -> AsyncIterator[Finding]:
        key, content = new_key(), secrets.token_bytes(SIZE)
        try:
            async for finding in self._reachable():
                yield finding
            yield await self._round_trip(key, content)
            yield await self._listed()
            yield await self._resumable()
            async for finding in self._public(new_key(), content):
                yield finding
        finally:
            await self._storage.close()

    async def _ask(
        self, method: str, key: str, body: bytes = b"", query: Mapping[str, str] | None = None, **headers: str
    ) -> S3Response:
        """Send a request to S3_ENDPOINT as the server does, but once. Raises one of FAILED."""
        return await self._storage.requests.try_once(method, key, query, body, headers=headers, patience=HTTP_TIMEOUT)

    async def _reachable(self) -> AsyncIterator[Finding]:
        try:
            moment = time.time()
            # GET, because the response to a HEAD has no reason.
            answer = await self._ask("GET", "", query={"list-type": "2", "max-keys": "1"})
        except FAILED as error:
            says = f"S3_ENDPOINT can't be reached ({type(error).__name__})."
            yield wrong("reachable", says, "Check that it runs, and check firewalls.")
            raise StopExamination("S3 can't be reached") from None
        bucket = self._settings.s3_bucket
        if answer.status == 404 and self._settings.s3_create_bucket:
            yield good("reachable", f"The bucket {bucket} does not exist yet; the server makes it when it starts.")
            raise StopExamination("the bucket does not exist")
        ahead = seconds_ahead(answer.headers.get("Date"), moment, time.time())
        skew = [] if ahead is None else [clock("clock", ahead, "S3")]
        if answer.status != 200:
            yield wrong("reachable", *_refused(answer, bucket))
            for finding in skew:  # it may be why
                yield finding
            raise StopExamination("S3 rejects our requests")
        yield good("reachable", f"The bucket {bucket} exists.")
        for finding in skew or [skipped("clock", "S3 sends no Date.")]:
            yield finding

    async def _round_trip(self, key: str, content: bytes) -> Finding:
        first, last = RANGE
        try:
            try:
                put = await self._ask("PUT", key, content)
                if put.status != 200:
                    return wrong("round trip", *_refused(put, self._settings.s3_bucket))
                got = await self._ask("GET", key)
                piece = await self._ask("GET", key, Range=f"bytes={first}-{last}")
            finally:
                gone = await self._ask("DELETE", key)
        except FAILED as error:
            return wrong("round trip", f"S3 closed the connection ({type(error).__name__}).", "See the log of S3.")
        if got.body != content or piece.status != 206 or piece.body != content[first : last + 1]:
            return wrong("round trip", "The object read differs from the one written.", "Check for a proxy before S3.")
        if gone.status not in (200, 204):
            return wrong("round trip", f"An object can't be deleted ({gone.status}).", "Allow DeleteObject.")
        return good("round trip", "An object was written, read in whole and in part, and deleted.")

    async def _listed(self) -> Finding:
        try:
            answer = await self._ask("GET", "", query={"list-type": "2", "prefix": f"tails/{new_key()}/"})
        except FAILED as error:
            return wrong("list", f"S3 closed the connection ({type(error).__name__}).", "See the log of S3.")
        if answer.status != 200:
            return wrong(
                "list", "Objects can't be listed, so parts of unfinished uploads stay for ever.", "Allow ListBucket."
            )
        return good("list", "Objects can be listed.")

    async def _resumable(self) -> Finding:
        key = new_key()
        try:
            upload = await self._storage.multipart.begin(key)
            await self._storage.multipart.abort(key, upload)
        except StorageAway:
            do = "Allow CreateMultipartUpload and AbortMultipartUpload."
            return wrong("resumable", "Multipart uploads can't be started or aborted.", do)
        return good("resumable", "Multipart uploads can be started and aborted.")

    async def _public(self, key: str, content: bytes) -> AsyncIterator[Finding]:
        """Upload and download as clients do, with presigned URLs."""
        link = self._storage.put_link(PendingUpload(key, len(content), resumable=False))
        assert link is not None
        try:
            async for finding in self._upload(link, content):
                yield finding
            async for finding in self._download(key, content):
                yield finding
            yield await self._cors(link)
        except Failed as error:
            says = f"S3_PUBLIC_ENDPOINT can't be reached from here ({_kind(error)})."
            yield wrong("public upload", says, "Check that clients reach it; this machine may need a DNS entry for it.")
            raise StopExamination("the public endpoint can't be reached") from None
        finally:
            await self._ask("DELETE", key)

    async def _upload(self, link: Link, content: bytes) -> AsyncIterator[Finding]:
        put = await ask(link.url, link.method, headers=link.headers, body=content)
        if put.status != 200:
            says, do = _refused(put, self._settings.s3_bucket)
            yield wrong("public upload", f"Clients can't upload: {says}", do)
            raise StopExamination("clients can't upload")
        again = await ask(link.url, link.method, headers=link.headers, body=bytes(len(content)))
        if again.status == 200:
            do = "Use an S3 that supports If-None-Match (AWS, MinIO, Ceph, a current SeaweedFS)."
            yield wrong("public upload", "A client can overwrite a file after the server has checked it.", do)
        else:
            yield good("public upload", "A client can upload a file once, and not overwrite it.")

    async def _download(self, key: str, content: bytes) -> AsyncIterator[Finding]:
        first, last = RANGE
        link = self._storage.content(key, "GET")
        got, piece = await ask(link.url), await ask(link.url, headers={"Range": f"bytes={first}-{last}"})
        if got.status != 200 or piece.status != 206 or piece.body != content[first : last + 1]:
            says = f"Clients can't download ({got.status}; {piece.status} for a part)."
            yield wrong("public download", says, "Check the proxy between clients and S3: it must pass Host and Range.")
        elif got.headers.get("Content-Disposition") != "attachment":
            says = "Files are sent without Content-Disposition: attachment, so a browser may run their content."
            yield weak("public download", says, "Let the proxy pass the parameters response-*.")
        else:
            yield good("public download", "A client can download it, in whole and in part.")
        plain = link.url.partition("?")[0]
        if (await ask(plain)).status == 200:
            do = "Remove its public access: policies, ACL, anonymous."
            yield wrong("privacy", "The file is readable without a signature: the bucket is public.", do)
        else:
            yield good("privacy", "The file is not readable without a signature.")

    async def _cors(self, link: Link) -> Finding:
        if not self._origins:
            return skipped("cors", "CORS_ALLOW_ORIGINS names no web app.")
        preflight = {
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type,if-none-match",
        }
        refused = []
        for origin in self._origins:
            answer = await ask(link.url, "OPTIONS", headers={"Origin": origin, **preflight})
            if answer.headers.get("Access-Control-Allow-Origin") not in (origin, "*"):
                refused.append(origin)
        if refused:
            do = "Add rules to the bucket: docs/operations.md, Files."
            return wrong("cors", f"{', '.join(refused)} can't upload: the bucket has no CORS rule for it.", do)
        return good("cors", "Web apps can upload.")


def _kind(error: BaseException) -> str:
    return "untrusted certificate" if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__


def _refused(answer: HttpResponse | S3Response, bucket: str) -> tuple[str, str]:
    """Explain an error of S3 by its documented code; the rest of the response may quote what was signed."""
    found = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", answer.body)
    code = found[1].decode() if found else ""
    explanations = {
        "InvalidAccessKeyId": ("S3 does not know S3_ACCESS_KEY.", "Compare it with the keys there."),
        "SignatureDoesNotMatch": (
            "S3 rejects our signature.",
            "Compare S3_SECRET_KEY and S3_REGION; a proxy before S3 must pass Host.",
        ),
        "RequestTimeTooSkewed": ("S3 rejects the time of our clock.", "Synchronize both machines with NTP."),
        "AccessDenied": ("The key may not do this.", "Allow it to put, get, list and delete objects in the bucket."),
        "NoSuchBucket": (f"The bucket {bucket} does not exist.", "Create it, or set S3_CREATE_BUCKET=true."),
        "AuthorizationHeaderMalformed": ("S3 is in another region.", "Set S3_REGION to the bucket's."),
        "NotImplemented": ("This S3 lacks a feature that the server needs.", "Use one with conditional writes."),
    }
    unknown = f"S3 answered {answer.status}{f' ({code})' if code else ''}."
    return explanations.get(code, (unknown, "See the log of S3."))
