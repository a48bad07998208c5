"""Read all sections of the settings at once, generate or check secrets, and report every fault together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from config import secrets, tracing
from config.settings import Core, Section, SettingsError, load


def read_sections(
    values: Mapping[str, str], features: Mapping[str, type[Section]], faults: Sequence[str], *, make_secrets: bool
) -> tuple[Core, dict[str, Section]]:
    """Read and validate the core's section, and one for each feature. In development missing secrets are generated and
    stored in the data folder.

    Raises SettingsError with every fault at once, ``faults`` first.
    """
    all_faults = list(faults)
    wanted: dict[str, type[Section]] = {"": Core, **features}
    secret_names = [
        field.upper() for section in wanted.values() for field in section.model_fields if field.endswith("_secret")
    ]
    complete = dict(values)
    if values.get("MIMU_ENV") == "production":
        all_faults += _production_faults(values, secret_names)
    else:
        folder = Path(values.get("MIMU_DATA_DIR", "var")) / "secrets"
        for name in secret_names:
            if not complete.get(name):
                complete[name] = secrets.keep(folder, name.lower()) if make_secrets else "-" * secrets.MINIMUM
    try:
        sections = load(wanted, complete)
    except SettingsError as error:
        all_faults += error.faults
    all_faults += tracing.faults(values)
    if all_faults:
        raise SettingsError(list(dict.fromkeys(all_faults)))  # several features may read the same setting
    core = sections.pop("")
    assert isinstance(core, Core)
    return core, sections


def _production_faults(values: Mapping[str, str], secret_names: Sequence[str]) -> list[str]:
    """Return the faults of settings that only development may have."""
    result = secrets.faults({name: values.get(name) for name in secret_names})
    if values.get("RATE_LIMITS", "on") == "off":
        result.append("RATE_LIMITS: off is for tests and benchmarks, not for production")
    if "*" in values.get("CORS_ALLOW_ORIGINS", ""):
        result.append("CORS_ALLOW_ORIGINS: * is not allowed in production; name the origins")
    return result
