"""Files: large, resumable and private, and never through memory (contract section 8)."""

from __future__ import annotations

from pydantic import ByteSize, Field

from config.settings import Rate, RateLimit
from config.storage import Endpoint, StorageSettings
from models.storage.opened import storage as opened
from plugins import App, Every, Plugin
from plugins.files import http, resumable
from plugins.files.files import Files, Tier
from plugins.files.links import Links
from plugins.files.uploads import Uploads

ID = "([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
MIB, GIB = 1 << 20, 1 << 30


class Settings(StorageSettings):
    files_public_url: Endpoint | None = Field(
        None, description="This server as clients reach it, for the addresses it hands out; unset: as they found it."
    )
    tier_free_file_bytes: ByteSize = Field(ByteSize(50 * MIB), ge=1, description="Largest file without a subscription.")
    tier_free_total_bytes: ByteSize = Field(ByteSize(1 * GIB), ge=0, description="All files without a subscription.")
    tier_premium_file_bytes: ByteSize = Field(ByteSize(500 * MIB), ge=1, description="Largest file with premium.")
    tier_premium_total_bytes: ByteSize = Field(ByteSize(20 * GIB), ge=0, description="All files with premium.")
    tier_ultra_file_bytes: ByteSize = Field(ByteSize(2 * GIB), ge=1, description="Largest file with ultra.")
    tier_ultra_total_bytes: ByteSize = Field(ByteSize(100 * GIB), ge=0, description="All files with ultra.")
    rate_limit_files: RateLimit = Field(Rate(600, 3600), description="Files a user may announce.")

    @property
    def tiers(self) -> dict[str, Tier]:
        return {
            "free": Tier(self.tier_free_file_bytes, self.tier_free_total_bytes),
            "premium": Tier(self.tier_premium_file_bytes, self.tier_premium_total_bytes),
            "ultra": Tier(self.tier_ultra_file_bytes, self.tier_ultra_total_bytes),
        }


def setup(app: App, settings: Settings) -> Plugin:
    storage = opened(settings, app.core.mimu_data_dir)
    links = Links(app.tokens.keyring)
    uploads = Uploads(app.db, storage, links)
    files = Files(app.db, storage, uploads, links, settings.tiers)
    announcing = {"files": files, "rate": settings.rate_limit_files, "address": settings.files_public_url}
    return Plugin(
        name="files",
        routes=(
            ("/files", http.Listing, announcing),
            ("/files/usage", http.Usage, {"files": files}),
            ("/files/tus", resumable.Creation, {**announcing, "uploads": uploads}),
            (f"/files/tus/{ID}", resumable.Resumption, {"uploads": uploads}),
            (f"/files/{ID}", http.One, {"files": files}),
            (f"/files/{ID}/complete", http.Complete, {"uploads": uploads}),
            (f"/files/{ID}/content", http.Content, {"files": files}),
            (f"/uploads/{ID}", http.Upload, {"uploads": uploads}),
        ),
        checks={"storage": files.check},
        periodic=(Every(60, files.sweep, "files"),),
        lifespan=storage.running,
    )
