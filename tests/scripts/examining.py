"""The doctor in this process, for tests: what it finds with these settings, without the second that a process takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from config.findings import Finding
from config.settings import environment
from scripts import doctor
from tests import canaries


class Found:
    """Findings by examination and part."""

    def __init__(self, found: Mapping[str, list[Finding]]) -> None:
        self.all = [(name, finding) for name, findings in found.items() for finding in findings]
        for _, finding in self.all:
            assert not canaries.escaped(finding.says + finding.do), "a finding tells a secret"
            assert (finding.state in ("good", "skipped")) == (not finding.do), f"what is to be done? {finding}"

    def __getitem__(self, which: tuple[str, str]) -> Finding:
        """The finding about a part; of several, the worst one."""
        found = [finding for name, finding in self.all if (name, finding.part) == which]
        assert found, f"nothing of {which} in {self.all}"
        return max(found, key=lambda finding: ("skipped", "good", "weak", "wrong").index(finding.state))

    def states(self, examination: str) -> dict[str, str]:
        """The state of each part."""
        return {
            finding.part: self[examination, finding.part].state for name, finding in self.all if name == examination
        }

    def bad(self) -> dict[tuple[str, str], str]:
        """All that is weak or wrong."""
        return {(name, one.part): one.says for name, one in self.all if one.state in ("weak", "wrong")}


async def examine(
    settings: Mapping[str, str],
    only: str,
    *,
    url: str | None = None,
    env_file: Path = Path("/dev/null"),
    seconds: float = 15,
    words: Sequence[str] = (),
) -> Found:
    """What the doctor finds with these settings, and nothing of our environment; ``words`` are further options."""
    words = ["--only", only, "--env-file", str(env_file), *(["--url", url] if url else []), *words]
    asked = doctor.parse(words)
    chosen = [one for one in doctor.examinations(asked, environment(env_file, settings)) if one.name in asked.only]
    assert {one.name for one in chosen} == set(only.split(","))
    return Found(await doctor.look(chosen, seconds))
