"""The version of the server, as setup.cfg has it."""

VERSION = "0.2.0"
