"""The endpoints of ``/files/tus``: resumable uploads for any client of tus 1.0."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from config.values import Rate
from handlers.http.uploads import UploadHandler
from handlers.wire.costs import READS, TRANSFERS, UPDATES, Cost
from handlers.wire.errors import InvalidRequest, NotFound, UnsupportedMediaType
from handlers.wire.operations import Answer, operation
from models.database import Row
from plugins.files import tus
from plugins.files.files import Files
from plugins.files.incoming import Incoming
from plugins.files.refusals import (
    ChecksumMismatch,
    ContentMismatch,
    FileTooLarge,
    NoRoom,
    OffsetMismatch,
    QuotaExceeded,
    UnsupportedTusVersion,
    UploadLocked,
)
from plugins.files.uploads import Uploads

STATE = (tus.RESUMABLE, tus.OFFSET, tus.EXPIRES)


class TusHandler(UploadHandler):
    """The headers that tus requires of every request and response."""

    refuses = (*UploadHandler.refuses, UnsupportedTusVersion)
    cors_request_headers, cors_response_headers = tus.SENT, tus.SHOWN
    incoming: Incoming | None = None

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Tus-Resumable", tus.VERSION)

    def prepare(self) -> Any:
        # For clients on networks that allow only GET and POST.
        method = self.request.headers.get("X-HTTP-Method-Override", "")
        if self.request.method == "POST" and method in ("PATCH", "DELETE", "HEAD"):
            self.request.method = method
        return super().prepare()

    async def begin(self, *path: Any, **_: Any) -> Incoming | None:
        if self.request.headers.get("Tus-Resumable") != tus.VERSION:
            raise UnsupportedTusVersion(headers={"Tus-Version": tus.VERSION})
        self.incoming = await self.open(*path)
        return self.incoming

    async def open(self, *path: Any, **_: Any) -> Incoming | None:
        """Return the sink of the body, if it is part of a file."""
        return None

    def set_upload_headers(self, row: Row) -> None:
        """Set the headers with the offset and expiry of the upload."""
        self.set_header("Upload-Offset", str(row["received"]))
        if row["expires_at"] is not None:
            self.set_header("Upload-Expires", tus.moment(row["expires_at"]))


class TusUploadsHandler(TusHandler):
    def initialize(self, files: Files, uploads: Uploads, rate: Rate, address: str | None) -> None:
        self._files, self._uploads, self._rate, self._address = files, uploads, rate, address

    async def open(self) -> Incoming | None:
        headers = self.request.headers
        if self.request.method != "POST":
            return None
        if "Upload-Defer-Length" in headers or "Upload-Concat" in headers:
            raise InvalidRequest("This server requires Upload-Length, and does not concatenate uploads.")
        size, metadata = tus.length(headers.get("Upload-Length")), headers.get("Upload-Metadata")
        announced, checksum = tus.metadata(metadata), tus.checksum(headers.get("Upload-Checksum"))
        await self.limit("files", self._rate, str(self.session.user_id))
        self.row = await self._files.announce_resumable(self.session, size, announced, metadata)
        if headers.get("Content-Type") != tus.BODY:
            return None
        return await self._uploads.begin(self.session.user_id, self.row["id"], checksum)

    @operation(
        {201: Answer(headers=(tus.LOCATION, *STATE))},
        refuses=(NotFound, FileTooLarge, UploadLocked, ContentMismatch, ChecksumMismatch, QuotaExceeded, NoRoom),
        limits={"rate_limit_files": "user"},
        headers=(tus.RESUMABLE, tus.LENGTH, tus.METADATA, tus.CHECKSUM),
        media=(tus.BODY,),
        cost=Cost(rows=1, transfers=True),
    )
    async def post(self) -> None:
        """Announce a file to upload by [tus 1.0.0](https://tus.io/protocols/resumable-upload).

        A body is its first piece. Clients that can send only GET and POST name other methods in
        `X-HTTP-Method-Override`. `OPTIONS` has the version, the extensions (`creation`, `creation-with-upload`,
        `checksum`, `termination`, `expiration`), the checksum algorithms, and the largest tier's `Tus-Max-Size`. A chat
        in which you take no part is 404.
        """
        await self.write_rest()
        if self.incoming is not None:
            await self.incoming.finish()
            self.row = await self._uploads.refresh(self.session.user_id, self.row["id"])
        self.set_header("Location", f"{self._address or self.origin}/files/tus/{self.row['id']}")
        self.set_upload_headers(self.row)
        self.set_status(201)
        self.finish()

    @operation({204: Answer(headers=(tus.RESUMABLE, *tus.SPOKEN))}, cost=READS)
    def options(self, *path: str) -> None:
        """Get the version and extensions of tus that this server supports."""
        self.set_header("Tus-Version", tus.VERSION)
        self.set_header("Tus-Extension", tus.EXTENSIONS)
        self.set_header("Tus-Max-Size", str(self._files.largest))
        self.set_header("Tus-Checksum-Algorithm", ",".join(tus.ALGORITHMS))
        super().options(*path)


class TusUploadHandler(TusHandler):
    def initialize(self, uploads: Uploads) -> None:
        self._uploads = uploads

    async def open(self, file_id: str) -> Incoming | None:
        headers = self.request.headers
        if self.request.method != "PATCH":
            return None
        if headers.get("Content-Type") != tus.BODY:
            raise UnsupportedMediaType(f"The body must be {tus.BODY}.")
        offset, checksum = tus.number("Upload-Offset", headers.get("Upload-Offset")), headers.get("Upload-Checksum")
        return await self._uploads.patch(self.session.user_id, UUID(file_id), offset, tus.checksum(checksum))

    @operation(
        {200: Answer(headers=(*STATE, tus.LENGTH, tus.METADATA))},
        refuses=(NotFound, ContentMismatch, NoRoom, UploadLocked),
        headers=(tus.RESUMABLE,),
        cost=READS,
    )
    async def head(self, file_id: UUID) -> None:
        """Get the offset of one of your uploads; this ends a request that is still writing."""
        row = await self._uploads.refresh(self.session.user_id, file_id)
        self.set_upload_headers(row)
        self.set_header("Upload-Length", str(row["size"]))
        if row["upload_metadata"]:
            self.set_header("Upload-Metadata", row["upload_metadata"])
        self.finish()

    @operation(
        {204: Answer(headers=STATE)},
        refuses=(
            NotFound,
            OffsetMismatch,
            ContentMismatch,
            UnsupportedMediaType,
            UploadLocked,
            ChecksumMismatch,
            NoRoom,
        ),
        headers=(tus.RESUMABLE, tus.OFFSET, tus.CHECKSUM),
        media=(tus.BODY,),
        cost=TRANSFERS,
    )
    async def patch(self, file_id: UUID) -> None:
        """Continue one of your uploads; with the last byte the file is complete."""
        await self.write_rest()
        if self.incoming is not None:
            await self.incoming.finish()
        self.set_upload_headers(await self._uploads.refresh(self.session.user_id, file_id))
        self.reply_nothing()

    @operation(
        {204: Answer(headers=(tus.RESUMABLE,))},
        refuses=(NotFound, ContentMismatch, NoRoom, UploadLocked),
        headers=(tus.RESUMABLE,),
        cost=UPDATES,
    )
    async def delete(self, file_id: UUID) -> None:
        """Cancel one of your uploads, and delete its bytes."""
        await self._uploads.cancel(self.session.user_id, file_id)
        self.reply_nothing()
