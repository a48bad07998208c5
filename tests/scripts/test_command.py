"""What all scripts share: options, exit codes, and the services of the server that runs beside them."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.settings import SettingsError
from scripts import command
from tests.client import Account
from tests.running import ROOT, program
from tests.scripts.program import script


def commands(public_id: str) -> tuple[tuple[str, ...], ...]:
    return (
        ("vouchers", "create", "--tier", "premium", "--days", "30"),
        ("cleanup",),
        ("push_test", public_id, "--list", "--json"),
        ("users", "suspend", public_id),
    )


@pytest.mark.gen_test(timeout=60)
async def test_they_find_the_services_of_the_server_that_runs_here(folder: Path) -> None:
    async with program(None, folder, MIMU_DATA_DIR=str(folder / "var")) as running:
        alice = await Account().register(running.url)
        async with alice.socket() as socket:
            for words in commands(alice.public_id):
                ended = await script(None, *words, MIMU_DATA_DIR=str(folder / "var"))
                assert (ended.code, ended.err) == (0, ""), words
                assert ended.out
            # The server learns it through its own Valkey; without that it would notice within ten seconds.
            await socket.expect("closed", code=4401)


@pytest.mark.gen_test
async def test_without_any_they_say_what_is_missing(folder: Path) -> None:
    lacking = [script(None, *words, MIMU_DATA_DIR=str(folder)) for words in commands("alice")]
    for ended in await asyncio.gather(*lacking):
        assert (ended.code, ended.out) == (78, "")
        assert "_URL: missing, and no server runs its own" in ended.err


def test_all_scripts_share_the_parser_and_the_exit_codes() -> None:
    """And with them ``--env-file``, ``--json``, and what is printed when a run fails."""
    for path in (ROOT / "scripts").glob("*.py"):
        text = path.read_text()
        if "def main()" in text and path.stem != "__main__":
            assert f'command.parser("{path.stem}"' in text, path
            assert not re.search(r'ArgumentParser\(|"--env-file"|"--json"|\b78\b(?! wrong| the settings)', text), path
            if path.stem not in ("configuration_page", "api_page"):  # these read no settings
                assert "command.common(" in text, path
                assert "command.run(" in text, path


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (SettingsError(["PORT: wrong", "HOST: wrong"]), 78, "PORT: wrong\nHOST: wrong\n"),
        (OSError("no room"), 1, "it failed: no room\n"),
        (ValueError("odd"), 1, "it failed: odd\n"),
        (KeyboardInterrupt(), 1, "interrupted\n"),
    ],
)
def test_exit_codes(error: BaseException, code: int, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    work = raising(error)

    async def coroutine() -> int:
        return work()

    works: tuple[Any, ...] = (work, coroutine)
    for one in works:
        assert command.run(one, failed="it failed", failures=(ValueError,)) == code
        assert capsys.readouterr() == ("", printed)


def test_an_error_that_a_script_does_not_expect_is_a_bug() -> None:
    with pytest.raises(LookupError):
        command.run(raising(LookupError()), failed="it failed", failures=(ValueError,))


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.5", "", "²", "٣"])
def test_numbers_out_of_bounds_are_wrong_usage(text: str) -> None:
    assert command.number(1, 10)("10") == 10
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 10"):
        command.number(1, 10)(text)
