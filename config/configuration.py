"""Reading all sections of the settings at once: with secrets made or judged, and every fault reported together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from config import secrets, tracing
from config.settings import Core, Section, SettingsError, load


def read_sections(
    values: Mapping[str, str], features: Mapping[str, type[Section]], faults: Sequence[str], *, make_secrets: bool
) -> tuple[Core, dict[str, Section]]:
    """Read and validate the core's section, and one for each feature. In development missing secrets are made and kept
    in the data folder.

    Raises SettingsError with every fault at once; ``faults`` are those found before.
    """
    found = list(faults)
    wanted: dict[str, type[Section]] = {"": Core, **features}
    named = [
        field.upper() for section in wanted.values() for field in section.model_fields if field.endswith("_secret")
    ]
    given = dict(values)
    if values.get("MIMU_ENV") == "production":
        found += _production_faults(values, named)
    else:
        folder = Path(values.get("MIMU_DATA_DIR", "var")) / "secrets"
        for name in named:
            if not given.get(name):
                given[name] = secrets.keep(folder, name.lower()) if make_secrets else "-" * secrets.MINIMUM
    try:
        read = load(wanted, given)
    except SettingsError as error:
        found += error.faults
    found += tracing.faults(values)
    if found:
        raise SettingsError(list(dict.fromkeys(found)))  # several features may read the same setting
    core = read.pop("")
    assert isinstance(core, Core)
    return core, read


def _production_faults(values: Mapping[str, str], named: Sequence[str]) -> list[str]:
    """What only development may have; ``named`` are the secrets."""
    found = secrets.faults({name: values.get(name) for name in named})
    if values.get("RATE_LIMITS", "on") == "off":
        found.append("RATE_LIMITS: off is for tests and benchmarks, not for production")
    if "*" in values.get("CORS_ALLOW_ORIGINS", ""):
        found.append("CORS_ALLOW_ORIGINS: * is refused in production; name the origins")
    return found
