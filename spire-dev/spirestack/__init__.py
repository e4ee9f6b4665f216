# SPDX-License-Identifier: Apache-2.0
"""A local SPIRE for tests and demos: binaries, processes, stack, personas.

Holds the Python side of ``spiredev.py``. Standard library and ``cryptography`` only, so that it runs before anything
else is installed. It is a development tool: nothing in ``jitwi`` may depend on it at run time.
"""

from spirestack.binaries import Binaries, build_binaries, find_binaries
from spirestack.domain import Minted
from spirestack.errors import BinariesError, SpireDevError, StackStateError, WaitTimeoutError
from spirestack.personas import Persona
from spirestack.stack import SpireStack

__all__ = [
    "Binaries",
    "BinariesError",
    "Minted",
    "Persona",
    "SpireDevError",
    "SpireStack",
    "StackStateError",
    "WaitTimeoutError",
    "build_binaries",
    "find_binaries",
]
