"""Files: announce, list, read and delete them, within the limits of the owner's tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from config.tiers import FREE, Tier, TierName
from handlers.http.pages import PageCursor
from handlers.tokens import Session
from handlers.wire.errors import Forbidden, NotFound
from models import files, orphans, subscriptions
from models.chats import chat_list
from models.database import Database, Row
from models.storage import Link, Reader, Storage, new_key
from models.sweeps import Sweep, Sweeper, Watch
from plugins.files import shapes
from plugins.files.links import Links
from plugins.files.refusals import FileTooLarge, QuotaExceeded, storage_errors
from plugins.files.uploads import Uploads

log = structlog.get_logger(__name__)

EXPIRE_BATCH = 1000  # unfinished uploads that one statement deletes


class Files:
    def __init__(
        self, db: Database, storage: Storage, uploads: Uploads, links: Links, tiers: Mapping[str, Tier]
    ) -> None:
        self._db, self._storage, self._uploads, self._links = db, storage, uploads, links
        self._tiers = tiers
        self._removed: Counter[str] = Counter()
        self.free_bytes: int | None = None  # in the storage; None if unknown

    @property
    def largest(self) -> int:
        """The size in bytes that the largest tier allows for a file."""
        return max(tier.file_bytes for tier in self._tiers.values())

    async def _tier(self, session: Session) -> tuple[TierName, Tier]:
        name = await subscriptions.tier(self._db, session.fingerprint) or FREE
        return name, self._tiers[name]

    async def announce(self, session: Session, request: shapes.NewFile, base: str) -> shapes.AnnouncedFile:
        """Reserve space for a file. Returns its id and upload link. Raises FileTooLarge, QuotaExceeded, NotFound."""
        new = files.NewFile(
            owner_id=session.user_id,
            chat_id=request.chat_id,
            size=request.size,
            sha256=request.sha256,
            media_type=request.media_type,
            storage_key=new_key(),
            resumable=False,
        )
        row = await self._reserve(session, new)
        link = self._storage.put_link(files.pending_upload(row)) or self._links.upload(base, row["id"], row["size"])
        expires = datetime.now(UTC) + timedelta(seconds=link.seconds)
        upload: shapes.Destination
        upload = {"method": link.method, "url": link.url, "headers": dict(link.headers), "expires_at": expires}
        return {"file_id": row["id"], "upload": upload}

    async def announce_resumable(
        self, session: Session, size: int, announced: shapes.Announced, metadata: str | None
    ) -> Row:
        """Reserve space for a file that is uploaded by tus. Raises FileTooLarge, QuotaExceeded, NotFound."""
        new = files.NewFile(
            owner_id=session.user_id,
            chat_id=announced.chat_id,
            size=size,
            sha256=announced.sha256,
            media_type=announced.media_type,
            storage_key=new_key(),
            resumable=True,
            part_size=self._storage.part_size(size),
            upload_metadata=metadata,
        )
        return await self._reserve(session, new)

    async def _reserve(self, session: Session, new: files.NewFile) -> Row:
        name, tier = await self._tier(session)
        if new.size > tier.file_bytes:
            raise FileTooLarge(f"The tier {name} allows files of at most {tier.file_bytes} bytes.")
        if new.chat_id is not None and await chat_list.membership_of(self._db, session.user_id, new.chat_id) is None:
            raise NotFound("There is no such chat.")
        with storage_errors():
            await self._storage.check()  # before the database has a file that can't be uploaded
        try:
            row = await files.reserve(self._db, new, tier.total_bytes)
        except files.Gone:
            raise NotFound("The account or the chat was deleted.") from None
        if row is None:
            raise QuotaExceeded(f"The tier {name} allows {tier.total_bytes} bytes in total.")
        return row

    async def usage(self, session: Session) -> shapes.Usage:
        """Return how much space a user's files use, and the limits."""
        name, tier = await self._tier(session)
        used, number = await files.usage(self._db, session.user_id)
        return {"tier": name, "files": number, "used_bytes": used, **tier.allowance()}

    async def entries(self, user_id: UUID, limit: int, before: PageCursor | None) -> list[shapes.File]:
        """Return a user's own files, the newest first."""
        return [shapes.file(row) for row in await files.entries(self._db, user_id, limit, before)]

    async def get(self, reader: UUID, file_id: UUID) -> Row:
        """Return a file that the reader may read now. Raises NotFound."""
        row = await files.readable(self._db, file_id, reader)
        if row is None:
            raise NotFound("There is no such file.")
        return row

    async def readable(self, reader: UUID, file_id: UUID) -> Row:
        """Return a complete file that the reader may read now. Raises NotFound."""
        row = await self.get(reader, file_id)
        if row["state"] != "complete":
            raise NotFound("The file is not complete.")
        return row

    async def content(self, row: Row, method: str) -> Link | AbstractAsyncContextManager[Reader]:
        """Return a link to the file's bytes (S3), or a reader of them."""
        content = self._storage.content(row["storage_key"], method)
        if isinstance(content, Link):
            with storage_errors():
                await self._storage.check()  # no redirect to a storage that is away
        return content

    async def source(self, reader: UUID, row: Row, base: str) -> shapes.Source:
        """Return a URL that reads a file without a token: on S3, or here."""
        content = await self.content(row, "GET")
        link = content if isinstance(content, Link) else self._links.download(base, row["id"], reader)
        return {"url": link.url, "expires_at": datetime.now(UTC) + timedelta(seconds=link.seconds)}

    async def signed(self, file_id: UUID, signed: shapes.SignedReading) -> Row:
        """Return the file of a signed URL, if its reader may still read the file. Raises Forbidden, NotFound."""
        self._links.check_download(file_id, signed)
        return await self.readable(signed.reader, file_id)

    @contextmanager
    def log_if_lost(self, row: Row) -> Iterator[None]:
        """Log an error and raise NotFound if the file's bytes are lost."""
        try:
            yield
        except FileNotFoundError:
            log.error("file_lost", file_id=str(row["id"]))
            raise NotFound("There is no such file.") from None

    async def delete(self, user_id: UUID, file_id: UUID) -> None:
        """Delete a file of the user. Raises NotFound; Forbidden for a file that the user may only read."""
        if not await self._uploads.remove(user_id, file_id):
            await self.get(user_id, file_id)
            raise Forbidden("Only the owner can delete this file.")

    async def check(self) -> None:
        """Check the storage, for ``/health``."""
        await self._storage.check()

    async def measure(self) -> None:
        """Update ``free_bytes`` for the metric; a slow disk does not delay requests."""
        self.free_bytes = await self._storage.free_bytes()

    def sweeper(self, watch: Watch) -> Sweeper:
        """Return the sweeper that deletes unfinished uploads that expired, and bytes whose file is gone."""

        async def expire(limit: int) -> int:
            self._removed["expired"] += (expired := await files.expire(self._db, limit))
            return expired

        def count(number: int) -> None:
            self._removed["removed"] += number

        unfinished = Sweep(files.UNFINISHED, expire, EXPIRE_BATCH)
        return Sweeper(self._db, watch, unfinished, orphans.sweep(self._db, self._storage, count))

    def report(self) -> None:
        """Log how many were removed since the last report."""
        removed, self._removed = self._removed, Counter()
        if removed.total():
            log.info("files_removed", expired=removed["expired"], removed=removed["removed"])
