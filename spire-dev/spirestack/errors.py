# SPDX-License-Identifier: Apache-2.0
"""Errors of the development stack: one tree, each with a way out. No I/O here."""

from __future__ import annotations


class SpireDevError(Exception):
    """Anything the development stack cannot do."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        """Keep the sentence and the way out.

        Args:
            message: What is wrong, without secrets.
            remedy: What the reader can do about it.
        """
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        """Sentence and remedy in one line."""
        message = super().__str__()
        return f"{message} ({self.remedy})" if self.remedy else message


class BinariesError(SpireDevError):
    """No usable SPIRE binaries, or they cannot be built here."""


class StackStateError(SpireDevError):
    """The recorded stack is not there, not ours, or in another state than the command needs."""


class WaitTimeoutError(SpireDevError):
    """The awaited effect was not seen before the deadline."""


class PortTakenError(SpireDevError):
    """Somebody took the free port between choosing and binding it: worth another try."""
