# SPDX-License-Identifier: Apache-2.0
"""The `jitwi` command: `python -m jitwi`, or `jitwi` where it is installed.

Holds the entry point and the list of commands, each in a module that is imported when it is called. Does not hold any
rule: a command prints what a room of the library answers. To add one, write a click command in a module here and name
it in `COMMANDS`.

Exit codes: 0 all is well, 1 it is not (the command says what), 2 wrong arguments.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from jitwi.cli.console import printable
from jitwi.errors import JitwiError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "LazyCommand", "main"]


class LazyCommand(NamedTuple):
    """Where a command is, and what the list of commands says of it.

    Args:
        module: Module to import.
        attribute: The click command in it.
        summary: One line for `--help`, so that showing it imports nothing.
    """

    module: str
    attribute: str
    summary: str


COMMANDS: Final[dict[str, LazyCommand]] = {
    "audit": LazyCommand("jitwi.cli.audit", "audit", "Verify and show the audit trail."),
    "leases": LazyCommand("jitwi.cli.leases", "leases", "List the leases that the journal remembers."),
    "reap": LazyCommand("jitwi.cli.leases", "reap", "End what processes that are gone have left behind."),
}


class _Commands(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        command = getattr(importlib.import_module(where.module), where.attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JitwiError as exc:
            raise click.ClickException(printable(str(exc))) from exc


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def _group() -> None:
    """Just-in-time credentials for SPIFFE workloads."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        args: Arguments without the program's name; default: those of the process.

    Raises:
        SystemExit: Always, with the exit code.
    """
    _group.main(args=args, prog_name="jitwi")
