"""The command line. Each command is a module of its own that is imported only when it is called."""

from integrity.cli.shell import main

__all__ = ["main"]
