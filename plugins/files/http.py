"""The endpoints of ``/files``, except resumable uploads."""

from __future__ import annotations

import re
from dataclasses import replace
from uuid import UUID

from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.http.downloads import (
    FILE_HEADERS,
    NOT_MODIFIED,
    PART_HEADERS,
    REQUEST_HEADERS,
    DownloadHandler,
    RangeNotSatisfiable,
)
from handlers.http.pages import PAGED, PageQuery, reply_page
from handlers.http.uploads import UploadHandler
from handlers.wire.costs import READS, TRANSFERS, UPDATES, WRITES
from handlers.wire.errors import Forbidden, InvalidRequest, NotFound
from handlers.wire.operations import Answer, Header, operation
from models.storage import Link
from plugins.files import shapes
from plugins.files.files import Files
from plugins.files.incoming import Incoming
from plugins.files.refusals import (
    AlreadyUploaded,
    ContentMismatch,
    FileTooLarge,
    NoRoom,
    NotUploaded,
    QuotaExceeded,
    UploadLocked,
)
from plugins.files.uploads import Uploads

LOCATION = Header("Location", "A URL on S3 that is valid for five minutes.", required=True)

OPTIONAL_BYTES = tuple(replace(header, required=False) for header in FILE_HEADERS)  # an address has none of them
_EXCLUDED = re.compile(r"q=0(\.0{0,3})?")


class FilesHandler(ApiHandler):
    def initialize(self, files: Files, rate: Rate, address: str | None) -> None:
        self._files, self._rate, self._address = files, rate, address

    @operation({200: Answer(list[shapes.File], headers=PAGED)}, cost=READS)
    async def get(self, query: PageQuery) -> None:
        """List your files, the newest first."""
        await self.reserve()
        entries = await self._files.entries(self.session.user_id, query.limit + 1, query.cursor)
        reply_page(self, query, entries, "created_at", "file_id")

    @operation(
        {201: shapes.AnnouncedFile},
        refuses=(NotFound, FileTooLarge, QuotaExceeded, NoRoom),
        limits={"rate_limit_files": "user"},
        cost=WRITES,
    )
    async def post(self, body: shapes.NewFile) -> None:
        """Announce a file, and get the URL for its bytes.

        Send the bytes there within the hour, without the token; then complete the file. A chat in which you take no
        part is 404.
        """
        await self.limit("files", self._rate, str(self.session.user_id))
        self.reply(await self._files.announce(self.session, body, self._address or self.origin), 201)


class FileUsageHandler(ApiHandler):
    def initialize(self, files: Files) -> None:
        self._files = files

    @operation({200: shapes.Usage}, cost=READS)
    async def get(self) -> None:
        """Get how much space your files use, and the limits."""
        self.reply(await self._files.usage(self.session))


class FileHandler(ApiHandler):
    def initialize(self, files: Files) -> None:
        self._files = files

    @operation({200: shapes.File}, refuses=(NotFound,), cost=READS)
    async def get(self, file_id: UUID) -> None:
        """Get a file that you may read.

        Its owner may read it. Once it is complete, so may the present participants of its chat, and everybody while it
        is its owner's avatar.
        """
        self.reply(shapes.file(await self._files.get(self.session.user_id, file_id)))

    @operation({204: None}, refuses=(Forbidden, NotFound), cost=UPDATES)
    async def delete(self, file_id: UUID) -> None:
        """Delete one of your files, whatever its state; a file that you may only read is `forbidden`."""
        await self._files.delete(self.session.user_id, file_id)
        self.reply_nothing()


class CompleteFileHandler(ApiHandler):
    slow = float("inf")  # a large file on S3 is read again

    def initialize(self, uploads: Uploads) -> None:
        self._uploads = uploads

    @operation({200: shapes.File}, refuses=(NotFound, NotUploaded, ContentMismatch, NoRoom, UploadLocked), cost=UPDATES)
    async def post(self, file_id: UUID) -> None:
        """Complete a file: the server checks its size and SHA-256, and lets others read it. Can be repeated."""
        self.reply(shapes.file(await self._uploads.complete(self.session.user_id, file_id)))


def prefers_json(accept: str) -> bool:
    """True if an Accept header (RFC 9110, 12.5.1) accepts JSON but not bytes. HTTP libraries that always send
    ``application/json, */*`` get the bytes."""
    accepted = set()
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if not any(_EXCLUDED.fullmatch(parameter) for parameter in parameters):
            accepted.add(kind)
    return "application/json" in accepted and not accepted & {"*/*", "application/*", "application/octet-stream"}


class FileContentHandler(DownloadHandler):
    def initialize(self, files: Files, address: str | None) -> None:
        self._files, self._address = files, address

    @operation(
        {
            200: Answer(
                shapes.Source,
                words="The whole file, or its URL.",
                headers=OPTIONAL_BYTES,
                media="application/octet-stream",
            ),
            206: Answer(words="The requested range.", headers=PART_HEADERS, media="application/octet-stream"),
            302: Answer(words="A redirect, with S3.", headers=(LOCATION,)),
            304: NOT_MODIFIED,
        },
        refuses=(NotFound, RangeNotSatisfiable),
        headers=REQUEST_HEADERS,
        cost=TRANSFERS,
    )
    async def get(self, file_id: UUID) -> None:
        """Download a file that you may read, as an attachment.

        With S3 the response is a redirect to a URL that works for five minutes. `If-Range` works; several ranges don't.

        With `Accept: application/json` (and no `*/*` beside it) the response is `{url, expires_at}`, with S3 and
        without: the URL of the bytes, which works without a token for five minutes. A page of another origin needs that
        with S3, because it can't follow the redirect.
        """
        row = await self._files.readable(self.session.user_id, file_id)
        self.add_header("Vary", "Accept")
        if prefers_json(self.request.headers.get("Accept", "")):
            self.set_header("Cache-Control", "no-store")
            self.reply(await self._files.source(self.session.user_id, row, self._address or self.origin))
            return
        content = await self._files.content(row, self.request.method or "")
        tag = f'"{row["sha256"].hex()}"'
        if isinstance(content, Link):
            self.clear_header("Content-Type")
            self.redirect(content.url)
        elif not self.reply_not_modified(tag):
            with self._files.log_if_lost(row):
                await self.send(content, row["size"], tag)

    head = get


class FileDownloadHandler(DownloadHandler):
    """For anyone with the URL: ``Links`` signs it."""

    public = True

    def initialize(self, files: Files) -> None:
        self._files = files

    @operation(
        {
            200: Answer(words="The whole file.", headers=FILE_HEADERS, media="application/octet-stream"),
            206: Answer(words="The requested range.", headers=PART_HEADERS, media="application/octet-stream"),
            304: NOT_MODIFIED,
        },
        refuses=(Forbidden, NotFound, RangeNotSatisfiable),
        headers=REQUEST_HEADERS,
        cost=TRANSFERS,
    )
    async def get(self, file_id: UUID, query: shapes.SignedReading) -> None:
        """Download a file from the signed URL that `GET /files/{file_id}/content` gave; send no token with it.

        It is 404, too, when its reader may not read the file any more. With S3 such a URL is one of S3.
        """
        row = await self._files.signed(file_id, query)
        content = await self._files.content(row, self.request.method or "")
        if isinstance(content, Link):  # signed before the server moved to S3
            raise NotFound("There is no such file.")
        tag = f'"{row["sha256"].hex()}"'
        if not self.reply_not_modified(tag):
            with self._files.log_if_lost(row):
                await self.send(content, row["size"], tag, query.reader)

    head = get


class FileUploadHandler(UploadHandler):
    """For anyone with the URL: ``Links`` signs it."""

    public = True
    incoming: Incoming

    def initialize(self, uploads: Uploads) -> None:
        self._uploads = uploads

    async def begin(self, file_id: str) -> Incoming:
        length = self.declared_length if "Content-Length" in self.request.headers else None
        self.incoming = await self._uploads.put(UUID(file_id), self.query(shapes.Signed), length)
        return self.incoming

    @operation(
        {204: None},
        refuses=(Forbidden, NotFound, AlreadyUploaded, NoRoom, UploadLocked),
        query=shapes.Signed,
        media=("application/octet-stream",),
        cost=TRANSFERS,
    )
    async def put(self, file_id: UUID) -> None:
        """Upload a file to the signed URL that announcing it gave; send no token with it.

        The body is the file, of the announced length; a shorter one is 400. With S3 such a URL is one of S3.
        """
        await self.write_rest()
        if self.incoming.offset < self.incoming.size:
            await self.incoming.abandon()
            raise InvalidRequest(f"The body must have {self.incoming.size} bytes.")
        await self.incoming.finish()
        self.reply_nothing()
