"""The examples of docs/files.md, run as they stand there."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from tests.client import Account
from tests.running import ROOT, Services, place, serving

PAGE = ROOT / "docs/files.md"


@pytest.mark.gen_test(timeout=60)
async def test_the_examples_run(services: Services, storage: dict[str, str], tmp_path: Path) -> None:
    for tool in ("curl", "jq", "sha256sum", "base64"):
        if shutil.which(tool) is None:
            pytest.skip(f"NOT TESTED: {tool} is not installed")
    script = "set -eu\n" + "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    folder = tmp_path / "client"
    folder.mkdir()
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            script,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "SERVER": running.url, "TOKEN": alice.token},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 50)
        assert process.returncode == 0, said.decode()
        usage = (await alice.get("/files/usage")).json
        assert (usage["files"], usage["used_bytes"]) == (2, 600_000)
        assert {entry["state"] for entry in (await alice.get("/files")).json} == {"complete"}
        shown = re.search(r"^```json\n(\{\"tier\".*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        assert shown is not None
        assert set(usage) == set(re.findall(r'"(\w+)":', shown[1]))
