# SPDX-License-Identifier: Apache-2.0
"""SHARED: what the processes of one host must agree on: proofs seen, uses counted, tasks ended.

Holds the ports and the SQLite stores behind them. Does not hold the meaning of a key, nor who asks when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jitwi.state.port import Endings, ProofLedger

if TYPE_CHECKING:
    from jitwi.state.endings import SqliteEndings
    from jitwi.state.ledger import SqliteProofLedger

__all__ = ["Endings", "ProofLedger", "SqliteEndings", "SqliteProofLedger"]


def __getattr__(name: str) -> Any:
    """Load the stores, and with them sqlite3, when they are first named."""
    if name == "SqliteEndings":
        from jitwi.state.endings import SqliteEndings

        return SqliteEndings
    if name == "SqliteProofLedger":
        from jitwi.state.ledger import SqliteProofLedger

        return SqliteProofLedger
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
