# SPDX-License-Identifier: Apache-2.0
"""`jitwi audit`: verify the trail, show the events of one transaction.

Holds two click commands. Does not hold what makes a trail whole: that is `jitwi.audit.verify`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from jitwi.audit import ChainReport, Verification, read, verify
from jitwi.cli.console import print_table, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["audit"]

_PATH = click.Path(path_type=Path)
_MAX_CELL: Final = 100


@click.group()
def audit() -> None:
    """Verify and show the audit trail."""


@audit.command("verify")
@click.argument("path", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def verify_command(path: Path, *, as_json: bool) -> None:
    """Check PATH, an audit folder or one chain; exit with 1 unless it is intact."""
    found = verify(path)
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
    else:
        _print(found)
    sys.exit(0 if found.is_intact else 1)


def _reports(found: Verification) -> Iterator[ChainReport]:
    if found.index is not None:
        yield found.index
    yield from found.chains


def _as_json(found: Verification) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "intact": found.is_intact,
        "records": found.records,
        "chains": [
            {
                "name": report.name,
                "status": report.status.value,
                "records": report.records,
                "first_at": report.first_at,
                "last_at": report.last_at,
                "unanchored": report.unanchored,
                "line": report.line,
                "problem": report.problem,
            }
            for report in _reports(found)
        ],
    }


def _print(found: Verification) -> None:
    print_table(
        f"audit trail {found.path}",
        ("file", "status", "records", "unanchored", "first", "last", "remark"),
        (
            (
                report.name,
                "index" if report is found.index and report.is_intact else report.status.value,
                str(report.records),
                str(report.unanchored or "-"),
                report.first_at[:19],
                report.last_at[:19],
                (f"line {report.line}: " if report.line else "") + report.problem,
            )
            for report in _reports(found)
        ),
    )
    broken = [report for report in _reports(found) if not report.is_intact]
    if found.is_intact:
        click.echo(f"intact: {found.records} records in {len(found.chains)} chains")
    elif not broken:
        click.echo("NOT INTACT: there is nothing here")
    else:
        for report in broken:
            where = f", line {report.line}" if report.line else ""
            click.echo(printable(f"NOT INTACT: {report.name}{where}: {report.problem}"))


@audit.command("show")
@click.argument("path", type=_PATH)
@click.option("--txn", help="Only the events of this transaction.")
@click.option("--json", "as_json", is_flag=True, help="One record per line, as it was written.")
def show_command(path: Path, *, txn: str | None, as_json: bool) -> None:
    """Show the events in PATH, an audit folder or one chain, in the order of their time."""
    records = sorted(read(path, txn=txn), key=lambda record: str(record.get("at")))
    if as_json:
        for record in records:
            click.echo(json.dumps(record))
        return
    print_table(
        f"audit trail {path}",
        ("at", "event", "workload", "task", "what"),
        (_row(record) for record in records if not str(record.get("kind")).startswith("chain.")),
    )


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    subject = record.get("subject")
    subject = subject if isinstance(subject, dict) else {}
    return (
        str(record.get("at"))[11:23],
        str(record.get("kind")),
        str(subject.get("workload") or record.get("workload") or ""),
        str(subject.get("task") or ""),
        _what(record),
    )


def _what(record: dict[str, Any]) -> str:
    """One cell that says what an event was about, from whatever members it has."""
    parts = []
    decision = record.get("decision")
    if isinstance(decision, dict):
        policies = decision.get("policy_ids")
        by = f" by {', '.join(map(str, policies))}" if isinstance(policies, list) and policies else ""
        parts.append(f"{decision.get('permission') or decision.get('action')}: {decision.get('reason')}{by}")
    for name in (
        "issuer",
        "outcome",
        "proof",
        "cause",
        "change",
        "step",
        "error",
        "reason",
        "detail",
        "lost",
        "audience",
    ):
        value = record.get(name)
        if value not in {None, ""} if isinstance(value, str | int | float | None) else False:
            parts.append(f"{name}={value}")
    text = " ".join(parts)
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 3] + "..."
