"""The endpoints of ``/files``, but for resumable uploads."""

from __future__ import annotations

from uuid import UUID

from config.settings import Rate
from handlers.base import ApiHandler
from handlers.downloads import DownloadHandler
from handlers.errors import InvalidRequest
from handlers.pages import PageQuery, reply_page
from handlers.uploads import UploadHandler
from models.storage import Link
from plugins.files import shapes
from plugins.files.files import Files
from plugins.files.incoming import Incoming
from plugins.files.uploads import Uploads


class Listing(ApiHandler):
    def initialize(self, files: Files, rate: Rate, address: str | None) -> None:
        self._files, self._rate, self._address = files, rate, address

    async def get(self) -> None:
        """200 list of one's own files, the newest first, with a Link to the next page; 400."""
        query = self.query(PageQuery)
        entries = await self._files.entries(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "created_at", "file_id")

    async def post(self) -> None:
        """201 ``file_id`` and ``upload``; 400, 404, 413 ``file_too_large``, 429, 507."""
        request = self.body(shapes.NewFile)
        await self.limit("files", self._rate, str(self.session.user_id))
        self.reply(await self._files.announce(self.session, request, self._address or self.origin), 201)


class Usage(ApiHandler):
    def initialize(self, files: Files) -> None:
        self._files = files

    async def get(self) -> None:
        """200 what one's files take, and what they may."""
        self.reply(await self._files.usage(self.session))


class One(ApiHandler):
    def initialize(self, files: Files) -> None:
        self._files = files

    async def get(self, file_id: str) -> None:
        """200 File; 404."""
        self.reply(shapes.file(await self._files.get(self.session.user_id, UUID(file_id))))

    async def delete(self, file_id: str) -> None:
        """204, by its owner; 403, 404."""
        await self._files.delete(self.session.user_id, UUID(file_id))
        self.reply_nothing()


class Complete(ApiHandler):
    slow = float("inf")  # a large file on S3 is read again

    def initialize(self, uploads: Uploads) -> None:
        self._uploads = uploads

    async def post(self, file_id: str) -> None:
        """200 File; 404, 409 ``not_uploaded``, ``content_mismatch``."""
        self.reply(shapes.file(await self._uploads.complete(self.session.user_id, UUID(file_id))))


class Content(DownloadHandler):
    def initialize(self, files: Files) -> None:
        self._files = files

    async def get(self, file_id: str) -> None:
        """200, 206 or 304 from here, 302 to S3; 404, 416."""
        row = await self._files.readable(self.session.user_id, UUID(file_id))
        content = await self._files.content(row, self.request.method or "")
        tag = f'"{row["sha256"].hex()}"'
        if isinstance(content, Link):
            self.clear_header("Content-Type")
            self.redirect(content.url)
        elif not self.fresh(tag):
            with self._files.found(row):
                await self.send(content, row["size"], tag)

    head = get


class Upload(UploadHandler):
    """For whoever has the address: ``Links`` signs it."""

    public = True
    incoming: Incoming

    def initialize(self, uploads: Uploads) -> None:
        self._uploads = uploads

    async def begin(self, file_id: str) -> Incoming:
        length = self.declared if "Content-Length" in self.request.headers else None
        self.incoming = await self._uploads.put(UUID(file_id), self.query(shapes.Signed), length)
        return self.incoming

    async def put(self, file_id: str) -> None:
        """204; 400, 403, 404, 412 ``already_uploaded``, 413, 507 ``storage_full``."""
        await self.received()
        if self.incoming.offset < self.incoming.size:
            await self.incoming.abandon()
            raise InvalidRequest(f"The body must have {self.incoming.size} bytes.")
        await self.incoming.finish()
        self.reply_nothing()
