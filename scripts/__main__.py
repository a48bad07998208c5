"""The command ``./mimu NAME …``: runs ``python -m scripts.NAME …`` with the settings of this installation.

Settings come from the file that MIMU_ENV_FILE names, else from /etc/mimu/mimu.env where the server runs under systemd,
else from ``.env`` beside ``server.py``; ``--env-file`` overrides all three. As root a command continues as the owner of
the data folder, so it needs no ``sudo -u``.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

FOLDER = Path(__file__).resolve().parent
CALLED = "MIMU_COMMAND"  # what the user typed, for the command's usage (scripts/command.py)
INSTALLED = Path("/etc/mimu/mimu.env")  # docs/deploy.md
FOR_DEVELOPERS = {"api_page", "configuration_page"}
USAGE = "usage: ./mimu COMMAND [options], ./mimu COMMAND --help"
WRONG_USAGE, WRONG_SETTINGS = 2, 78  # as every script ends (scripts/command.py)


def commands() -> dict[str, str]:
    """The name of each command, and one sentence on what it does."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text())
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if runs and path.stem != "__main__" and path.stem not in FOR_DEVELOPERS:
            summary = (ast.get_docstring(tree) or "").partition("``")[0].strip().rstrip(":")
            found[path.stem.replace("_", "-")] = summary + "."
    return found


def env_file(environ: dict[str, str] | os._Environ[str], installed: Path = INSTALLED) -> str | None:
    """The file with this installation's settings; None stands for ``.env`` beside ``server.py``."""
    return environ.get("MIMU_ENV_FILE") or (str(installed) if _exists(installed) else None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # the folder is closed to this user, so it is there; the command says what to do
        return True


def arguments(words: Sequence[str], file: str | None) -> list[str]:
    """The options of a command, with the installation's settings unless they name others."""
    named = any(word == "--env-file" or word.startswith("--env-file=") for word in words)
    return [*words] if file is None or named else [*words, "--env-file", file]


def _become(name: str, options: Sequence[str]) -> NoReturn:
    os.environ[CALLED] = f"./mimu {name}"
    script = str(FOLDER / f"{name.replace('-', '_')}.py")
    os.execv(sys.executable, [sys.executable, script, *options])


def main() -> int:
    known = commands()
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, known))
        print(USAGE, "", *(f"  {name:{width}}  {summary}" for name, summary in known.items()), sep="\n")
        return 0 if words else WRONG_USAGE
    name = words[0].replace("_", "-")
    if name not in known:
        print(f"There is no command {words[0]!r}. {USAGE}\nCommands: {', '.join(known)}", file=sys.stderr)
        return WRONG_USAGE
    file = env_file(os.environ)
    if file is not None and not os.access(file, os.R_OK):
        print(f"{file} can't be read: run this as root, or set MIMU_ENV_FILE", file=sys.stderr)
        return WRONG_SETTINGS
    _become(name, arguments(words[1:], file))


if __name__ == "__main__":
    sys.exit(main())
