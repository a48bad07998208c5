"""Examinations of the doctor, one file each. An error or a delay in one does not stop the others."""

from __future__ import annotations

import asyncio
import contextlib

from config.findings import Examination, Finding, StopExamination, skipped, wrong


async def run_examination(examination: Examination, seconds: float) -> list[Finding]:
    """Run an examination for at most ``seconds``. Returns its findings. Never raises: an error becomes a finding."""
    found: list[Finding] = []
    why = ""
    try:
        async with asyncio.timeout(seconds), contextlib.aclosing(examination.look()) as looking:  # type: ignore[type-var]
            async for finding in looking:
                found.append(finding)  # noqa: PERF401  # one by one, to keep the findings before an error
    except StopExamination as stop:
        why = f"because {stop}"
    except TimeoutError:
        part = _following(examination, found)
        found.append(wrong(part, f"No answer within {seconds:g} s.", "Check whether it hangs, or raise --timeout."))
        why = "because it took too long"
    except Exception as error:
        # The type only: the text may contain a URL with its password.
        part = _following(examination, found)
        found.append(
            wrong(part, f"The doctor failed ({type(error).__name__}).", "Report this bug to the authors of Mimu.")
        )
        why = "because the doctor failed"
    if why:
        reported = {finding.part for finding in found}
        found += [skipped(part, f"Not checked, {why}.") for part in examination.parts if part not in reported]
    return found


def _following(examination: Examination, found: list[Finding]) -> str:
    """Return the part that was being checked: the first one without a finding."""
    reported = {finding.part for finding in found}
    return next((part for part in examination.parts if part not in reported), examination.name)
