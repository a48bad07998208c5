"""What the doctor looks at, a file for each thing; none can hide another, and none takes longer than it may."""

from __future__ import annotations

import asyncio
import contextlib

from config.findings import Examination, Finding, StopExamination, skipped, wrong


async def examined(examination: Examination, seconds: float) -> list[Finding]:
    """All that an examination finds within so many seconds. It never raises: what it stumbles over is a finding."""
    found: list[Finding] = []
    why = ""
    try:
        async with asyncio.timeout(seconds), contextlib.aclosing(examination.look()) as looking:  # type: ignore[type-var]
            async for finding in looking:
                found.append(finding)  # noqa: PERF401  # one by one: what was found before it broke off counts
    except StopExamination as stop:
        why = f"because {stop}"
    except TimeoutError:
        part = _following(examination, found)
        found.append(
            wrong(part, f"No answer within {seconds:g} s.", "See whether it hangs; --timeout gives it longer.")
        )
        why = "because it took too long"
    except Exception as error:
        # By its type only: a text may quote an address with its password.
        part = _following(examination, found)
        found.append(wrong(part, f"The doctor stumbled ({type(error).__name__}).", "Tell the makers of Mimu."))
        why = "because the doctor stumbled"
    if why:
        told = {finding.part for finding in found}
        found += [skipped(part, f"Not looked at, {why}.") for part in examination.parts if part not in told]
    return found


def _following(examination: Examination, found: list[Finding]) -> str:
    """The part that was being looked at: the first one that nothing has been said of."""
    told = {finding.part for finding in found}
    return next((part for part in examination.parts if part not in told), examination.name)
