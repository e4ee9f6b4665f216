# SPDX-License-Identifier: Apache-2.0
r"""Printing what others wrote without letting it move the cursor.

Holds `printable` and one table. Records, file names and error texts hold names that somebody else chose; a terminal
obeys escape sequences, and its reader is fooled by marks that change the direction of text.

Example:
    >>> from jitwi.cli.console import printable
    >>> printable("refund\x1b[2J\u202egnp.exe\n")
    'refund\\x1b[2J\\u202egnp.exe\\n'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["print_table", "printable"]

_WIDE: Final = 160


def printable(text: str) -> str:
    """Return `text` with everything that is not a visible character or a plain space as a Python escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of untrusted text: made printable, and never read as markup.

    Args:
        title: Above the table.
        columns: Headings.
        rows: Cells, as many as headings.
    """
    table = Table(title=Text(printable(title)), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(highlight=False, width=_WIDE)
    console.print(table)
