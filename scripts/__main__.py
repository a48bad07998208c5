"""The command ``./mimu NAME …``: run ``python -m scripts.NAME …`` with the settings of this installation.

Settings come from the file that MIMU_ENV_FILE names, else from /etc/mimu/mimu.env if it exists (under systemd), else
from ``.env`` beside ``server.py``; ``--env-file`` overrides all three. A command that root starts continues as the
owner of the data folder, so it needs no ``sudo -u``.
"""

from __future__ import annotations

import ast
import os
import pwd
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

FOLDER = Path(__file__).resolve().parent
COMMAND_VARIABLE = "MIMU_COMMAND"  # has the command as typed, for its usage (scripts/command.py)
INSTALLED = Path("/etc/mimu/mimu.env")  # docs/deploy.md
USAGE = "usage: ./mimu COMMAND [options]"
WRONG_USAGE, WRONG_SETTINGS = 2, 78  # as every script ends (scripts/command.py)
GROUPS = {
    "Set up": ("migrate", "doctor", "turnserver-conf", "vapid-keys"),
    "Accounts": ("users", "vouchers", "push-test"),
    "Data and secrets": ("backup", "restore", "move-files", "cleanup", "rotate-keys"),
    "For contributors": ("configuration-page", "api-page"),
}
WITHOUT_SETTINGS = GROUPS["For contributors"]


def commands() -> dict[str, str]:
    """Return the commands, each with a sentence on what it does, in the order of the help."""
    summaries = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text())
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if runs and path.stem != "__main__":
            summary = (ast.get_docstring(tree) or "").partition("``")[0].strip().rstrip(":")
            summaries[path.stem.replace("_", "-")] = summary + "."
    return {name: summaries[name] for names in GROUPS.values() for name in names}


def env_file(environ: Mapping[str, str], installed: Path = INSTALLED) -> str | None:
    """Return the file with this installation's settings; None for ``.env`` beside ``server.py``."""
    return environ.get("MIMU_ENV_FILE") or (str(installed) if _exists(installed) else None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # this user can't read the folder, so it exists; the command says what to do
        return True


def arguments(words: Sequence[str], file: str | None) -> list[str]:
    """Return the options of a command; add the installation's settings unless they name others."""
    named = any(word == "--env-file" or word.startswith("--env-file=") for word in words)
    return [*words] if file is None or named else [*words, "--env-file", file]


def usage(file: str | None) -> str:
    """Return the text of ``./mimu --help``: the commands in their groups, and the settings and user that they have."""
    known = commands()
    width = max(map(len, known))
    lines = [USAGE, "       ./mimu COMMAND --help"]
    for title, names in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}  {known[name]}" for name in names)]
    return "\n".join([*lines, "", f"Settings: {_settings(file)}", f"User: {_user()}"])


def _settings(file: str | None) -> str:
    if file is None:
        own = FOLDER.parent / ".env"
        return f"{own} (MIMU_ENV_FILE or --env-file names another)" if _exists(own) else "the environment only, no file"
    if not os.access(file, os.R_OK):
        return f"{file}, which this user can't read: run as root, or set MIMU_ENV_FILE"
    return f"{file} (--env-file names another)"


def _user() -> str:
    name = _user_name(os.geteuid())
    return f"{name}; a command continues as the owner of MIMU_DATA_DIR" if os.geteuid() == 0 else name


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in containers, a number without a name
        return str(uid)


def _become(name: str, options: Sequence[str], file: str | None) -> NoReturn:
    os.environ[COMMAND_VARIABLE] = f"./mimu {name}"
    if file is not None:
        os.environ["MIMU_ENV_FILE"] = file  # for the command's help
    script = str(FOLDER / f"{name.replace('-', '_')}.py")
    os.execv(sys.executable, [sys.executable, script, *options])


def main() -> int:
    words = sys.argv[1:]
    file = env_file(os.environ)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(file), file=sys.stdout if words else sys.stderr)
        return 0 if words else WRONG_USAGE
    name = words[0].replace("_", "-")
    known = commands()
    if name not in known:
        print(f"There is no command {words[0]!r}. {USAGE}\nCommands: {', '.join(known)}", file=sys.stderr)
        return WRONG_USAGE
    options = words[1:]
    if name in WITHOUT_SETTINGS or {"-h", "--help"} & {*options}:
        _become(name, options, file)
    complete = arguments(options, file)
    if file is not None and complete != options and not os.access(file, os.R_OK):
        print(f"{file} can't be read: run this as root, or set MIMU_ENV_FILE", file=sys.stderr)
        return WRONG_SETTINGS
    _become(name, complete, file)


if __name__ == "__main__":
    sys.exit(main())
