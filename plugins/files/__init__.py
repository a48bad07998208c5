"""Files: large, resumable and private, never held in memory (contract section 8)."""

from __future__ import annotations

from pydantic import Field

from config.storage import StorageSettings
from config.tiers import TierSettings
from config.values import Rate, RateLimit, WebAddress
from handlers.http.base import ID
from models.storage.opened import storage as opened
from plugins import App, Every, Plugin
from plugins.files import http, resumable
from plugins.files.files import Files
from plugins.files.links import Links
from plugins.files.uploads import Uploads


class Settings(StorageSettings, TierSettings):
    files_public_url: WebAddress | None = Field(
        None,
        description="This server as clients reach it, for upload URLs: https://mimu.example.org. Unset: the host "
        "that the client used. Set it when a proxy changes the Host header.",
    )
    rate_limit_files: RateLimit = Field(Rate(600, 3600), description="Files that a user may announce.")


SWEEP_SECONDS = 10.0  # a server that stops waits for the run in progress


def setup(app: App, settings: Settings) -> Plugin:
    storage = opened(settings, app.core.mimu_data_dir)
    links = Links(app.tokens.keyring)
    uploads = Uploads(app.db, storage, links)
    files = Files(app.db, storage, uploads, links, settings.tiers)

    def free_bytes() -> dict[tuple[str, ...], float]:
        return {} if files.free_bytes is None else {(): files.free_bytes}

    sweeper = files.sweeper(app.sweeps)

    async def sweep() -> None:
        try:
            await sweeper.run(SWEEP_SECONDS)
        finally:
            files.report()

    app.metrics.add_gauges("mimu_files_free_bytes", "Free bytes on the disk of files; absent with S3.", (), free_bytes)
    announcing = {"files": files, "rate": settings.rate_limit_files, "address": settings.files_public_url}
    return Plugin(
        name="files",
        guide="files.md",
        routes=(
            ("/files", http.FilesHandler, announcing),
            ("/files/usage", http.FileUsageHandler, {"files": files}),
            ("/files/tus", resumable.TusUploadsHandler, {**announcing, "uploads": uploads}),
            (f"/files/tus/{ID}", resumable.TusUploadHandler, {"uploads": uploads}),
            (f"/files/{ID}", http.FileHandler, {"files": files}),
            (f"/files/{ID}/complete", http.CompleteFileHandler, {"uploads": uploads}),
            (f"/files/{ID}/content", http.FileContentHandler, {"files": files, "address": settings.files_public_url}),
            (f"/downloads/{ID}", http.FileDownloadHandler, {"files": files}),
            (f"/uploads/{ID}", http.FileUploadHandler, {"uploads": uploads}),
        ),
        checks={"storage": files.check},
        periodic=(Every(60, sweep, "files"), Every(30, files.measure, "files_room")),
        lifespan=storage.running,
    )
