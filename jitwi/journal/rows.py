# SPDX-License-Identifier: Apache-2.0
"""Records as rows: schema, statements, bounds, and the way there and back.

Holds what `sqlite.py` writes. What goes in is bounded and of the right kind, or refused; what comes out is taken as
written by somebody who may have been wrong: a recipe that cannot be read becomes an empty one, so that the lease is
still ended by its id.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from jitwi.errors import JournalError
from jitwi.journal.record import LeaseRecord, LeaseStatus, Owner

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "INSERT",
    "INSERT_IF_NEW",
    "MAX_RECIPE_BYTES",
    "MAX_RECIPE_ENTRIES",
    "SCHEMA",
    "SELECT",
    "one_line",
    "owner_from_text",
    "owner_text",
    "recipe_from",
    "recipe_text",
    "record_of",
    "require_owner",
    "require_time",
    "row_of",
]

MAX_RECIPE_BYTES = 8192
MAX_RECIPE_ENTRIES = 32
MAX_TEXT_BYTES = 2048  # a SPIFFE ID, the longest of them
MAX_DETAIL = 300

_TEXT_COLUMNS = ("lease_id", "grant_id", "txn", "issuer", "kind", "workload", "task", "strength")
_OWNER_COLUMNS = ("owner_host", "owner_pid", "owner_started_at", "owner_token")
_COLUMNS = (
    *_TEXT_COLUMNS,
    *("recipe", "status", "outcome", "detail", "created_at", "expires_at", "next_attempt_at", "attempts"),
    *_OWNER_COLUMNS,
)

SCHEMA = (
    """CREATE TABLE leases (
        lease_id TEXT PRIMARY KEY, grant_id TEXT NOT NULL, txn TEXT NOT NULL, issuer TEXT NOT NULL, kind TEXT NOT NULL,
        workload TEXT NOT NULL, task TEXT NOT NULL, strength TEXT NOT NULL, recipe TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('intended', 'active', 'ending', 'ended')),
        outcome TEXT NOT NULL, detail TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
        next_attempt_at REAL NOT NULL, attempts INTEGER NOT NULL,
        owner_host TEXT NOT NULL, owner_pid INTEGER NOT NULL, owner_started_at INTEGER NOT NULL,
        owner_token TEXT NOT NULL,
        claimed_by TEXT NOT NULL DEFAULT '', claimed_until REAL NOT NULL DEFAULT 0, ended_at REAL NOT NULL DEFAULT 0
    ) WITHOUT ROWID""",
    "CREATE INDEX leases_open ON leases (issuer, status) WHERE status != 'ended'",
    "CREATE INDEX leases_of_owner ON leases (owner_token)",
    "CREATE TABLE owners (token TEXT PRIMARY KEY, beat_at REAL NOT NULL) WITHOUT ROWID",
)
SELECT = f"SELECT {', '.join(_COLUMNS)} FROM leases"  # noqa: S608 - made of constants
INSERT = f"INSERT INTO leases ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
INSERT_IF_NEW = INSERT.replace("INSERT", "INSERT OR IGNORE", 1)


def _refuse(message: str) -> JournalError:
    return JournalError(message, reasons=("bounds",))


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refuse(f"`{what}` of a lease is `{type(value).__name__}`, not text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as exc:
        raise _refuse(f"`{what}` of a lease has a surrogate") from exc
    if size > MAX_TEXT_BYTES:
        raise _refuse(f"`{what}` of a lease is longer than {MAX_TEXT_BYTES} bytes")
    return value


def require_time(what: str, value: object) -> float:
    """Return a time in seconds since the epoch.

    Raises:
        JournalError: It is no number, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refuse(f"`{what}` of a lease is not a time")
    return float(value)


def one_line(text: str) -> str:
    """Return `text` as one printable line within bounds."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:MAX_DETAIL])
    return line[:MAX_DETAIL]


def recipe_text(recipe: Mapping[str, str]) -> str:
    """Return a recipe as JSON text.

    Raises:
        JournalError: It holds something else than text, such as a `Secret`, or is out of bounds.
    """
    if len(recipe) > MAX_RECIPE_ENTRIES:
        raise _refuse(f"a recipe has at most {MAX_RECIPE_ENTRIES} entries, not {len(recipe)}")
    for key, value in recipe.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise _refuse(f"a recipe holds text, not `{type(value).__name__}`")
    text = json.dumps(dict(recipe), sort_keys=True, separators=(",", ":"))
    if len(text) > MAX_RECIPE_BYTES:
        raise _refuse(f"a recipe is at most {MAX_RECIPE_BYTES} bytes of JSON, not {len(text)}")
    return text


def recipe_from(text: object) -> tuple[dict[str, str], bool]:
    """Return the recipe in JSON text, and whether it could be read; an empty one if not."""
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError):
        return {}, False
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return value, True
    return {}, False


def require_owner(owner: Owner) -> None:
    """Check an owner's fields.

    Raises:
        JournalError: One is of the wrong kind or out of bounds.
    """
    _text("owner", owner.host)
    _text("owner", owner.token)
    for number in (owner.pid, owner.started_at):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
            raise _refuse("`owner` of a lease is out of bounds")


def owner_text(owner: Owner) -> str:
    """Return an owner as JSON text."""
    return json.dumps([owner.host, owner.pid, owner.started_at, owner.token])


def owner_from_text(text: object) -> Owner | None:
    """Return the owner that `owner_text` wrote, or None."""
    try:
        host, pid, started_at, token = json.loads(str(text))
    except (ValueError, TypeError):
        return None
    if not (isinstance(host, str) and isinstance(token, str) and isinstance(pid, int) and isinstance(started_at, int)):
        return None
    return Owner(host, pid, started_at, token)


def row_of(record: LeaseRecord) -> tuple[Any, ...]:
    """Return the values of a record in the order of the columns.

    Raises:
        JournalError: A field is of the wrong kind or out of bounds.
    """
    require_owner(record.owner)
    if not record.lease_id:
        raise _refuse("a lease needs an id")
    texts = [_text(name, getattr(record, name)) for name in _TEXT_COLUMNS]
    return (
        *texts,
        recipe_text(record.recipe),
        record.status.value,
        one_line(record.outcome),
        one_line(record.detail),
        require_time("created_at", record.created_at),
        require_time("expires_at", record.expires_at),
        require_time("next_attempt_at", record.next_attempt_at),
        record.attempts,
        record.owner.host,
        record.owner.pid,
        record.owner.started_at,
        record.owner.token,
    )


def record_of(row: tuple[Any, ...]) -> LeaseRecord:
    """Return the record of a row."""
    fields = dict(zip(_COLUMNS, row, strict=True))
    recipe, is_readable = recipe_from(fields["recipe"])
    return LeaseRecord(
        lease_id=fields["lease_id"],
        grant_id=fields["grant_id"],
        txn=fields["txn"],
        issuer=fields["issuer"],
        kind=fields["kind"],
        workload=fields["workload"],
        task=fields["task"],
        recipe=recipe,
        owner=Owner(fields["owner_host"], fields["owner_pid"], fields["owner_started_at"], fields["owner_token"]),
        created_at=fields["created_at"],
        expires_at=fields["expires_at"],
        status=LeaseStatus(fields["status"]),
        outcome=fields["outcome"],
        attempts=fields["attempts"],
        next_attempt_at=fields["next_attempt_at"],
        detail=fields["detail"] if is_readable else "its recipe cannot be read",
        strength=fields["strength"],
    )
