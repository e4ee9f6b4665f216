# SPDX-License-Identifier: Apache-2.0
"""`jitwi leases` and `jitwi reap`: what is not over yet, and ending what nobody else ends.

Holds the two commands. Does not hold the reaper: it is `jitwi.credentials.reaping` over `jitwi.journal`.
"""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jitwi.cli.console import print_table, printable
from jitwi.clock import SystemClock, as_datetime
from jitwi.config import CONFIG_VARIABLE, default_state_dir, load_config
from jitwi.errors import JitwiError
from jitwi.journal import SqliteJournal, is_alive, journal_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.audit import AuditLog
    from jitwi.clock import Instant
    from jitwi.config import Config
    from jitwi.journal import LeaseRecord, Reaper, ReapReport

__all__ = ["leases", "reap"]

_F = TypeVar("_F", bound="Callable[..., Any]")

_STATE_DIR = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Folder of the state. [default: the configuration's, JITWI_STATE_DIR, ~/.local/state/jitwi]",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Failure(click.ClickException):
    """An error of ours, printed as one line, with exit code 2."""

    exit_code = 2


def _config_option(*, required: bool) -> Callable[[_F], _F]:
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        envvar=CONFIG_VARIABLE,
        required=required,
        help=f"Configuration file. [env: {CONFIG_VARIABLE}]",
    )


def _place(state_dir: Path | None, config: Config | None) -> Path:
    if state_dir is not None:
        return state_dir
    if config is not None and config.state_dir is not None:
        return config.state_dir
    return default_state_dir()


@click.command("leases")
@_config_option(required=False)
@_STATE_DIR
@click.option("--issuer", help="Only those of this issuer.")
@_JSON
def leases(config_path: Path | None, state_dir: Path | None, issuer: str | None, *, as_json: bool) -> None:
    """List the leases that are not over, and whether their process still lives."""
    try:
        config = None if config_path is None else load_config(config_path)
        path = journal_path(_place(state_dir, config))
        now = SystemClock().now()
        shown = _read(path, issuer, now) if path.exists() else []
    except JitwiError as exc:
        raise _Failure(str(exc)) from exc
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    elif shown:
        _print_table(shown)
    else:
        click.echo("no open leases")


def _read(path: Path, issuer: str | None, now: Instant) -> list[dict[str, Any]]:
    journal = SqliteJournal(path, clock=SystemClock())
    try:
        records, beats = journal.open_leases(issuer=issuer), journal.heartbeats()
    finally:
        journal.close()
    return [_shown(record, beats.get(record.owner.token), now.wall) for record in records]


def _shown(record: LeaseRecord, beat: float | None, now: float) -> dict[str, Any]:
    return {
        "lease_id": record.lease_id,
        "issuer": record.issuer,
        "kind": record.kind,
        "task": record.task,
        "workload": record.workload,
        "status": record.status.value,
        "owner_pid": record.owner.pid,
        "owner": "alive" if is_alive(record.owner, beat, now) else "gone",
        "created_at": as_datetime(record.created_at).isoformat(timespec="seconds"),
        "expires_at": as_datetime(record.expires_at).isoformat(timespec="seconds"),
        "is_overdue": now >= record.expires_at,
        "attempts": record.attempts,
        "detail": record.detail,
        "grant_id": record.grant_id,
        "txn": record.txn,
    }


def _print_table(shown: list[dict[str, Any]]) -> None:
    columns = ("lease", "issuer", "task", "status", "owner", "ends", "tries", "last failure")
    rows = []
    for row in shown:
        ends = f"{row['expires_at']}{' (overdue)' if row['is_overdue'] else ''}"
        owner = f"{row['owner_pid']} {row['owner']}"
        cells = (
            row["lease_id"],
            row["issuer"],
            row["task"],
            row["status"],
            owner,
            ends,
            row["attempts"],
            row["detail"],
        )
        rows.append([str(cell) for cell in cells])
    print_table(f"{len(rows)} open leases", columns, rows)


@click.command("reap")
@_config_option(required=True)
@_STATE_DIR
@click.option("--loop/--once", default=False, help="Go on until SIGINT or SIGTERM, or do one round. [default: once]")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds.")
@_JSON
@click.pass_context
def reap(
    context: click.Context, config_path: Path, state_dir: Path | None, *, loop: bool, interval: float, as_json: bool
) -> None:
    """End leases whose process is gone or whose time is up, and what a backend lists and nobody answers for.

    Exit code: 0 if all that was found is over, 1 if something is left, 2 if it could not be done.
    """
    from jitwi.audit import AuditLog
    from jitwi.credentials.reaping import make_reaper

    clock = SystemClock()
    try:
        config = load_config(config_path)
        place = _place(state_dir, config)
        issuers = config.issuers()
        journal = SqliteJournal(journal_path(place), clock=clock)
        audit: AuditLog = AuditLog(config.audit_dir or place / "audit", clock=clock)
        reaper = make_reaper(journal, issuers, clock=clock, audit=audit)
    except JitwiError as exc:
        raise _Failure(str(exc)) from exc
    try:
        code = _loop(reaper, interval, as_json=as_json) if loop else _print_report(reaper.run_once(), as_json=as_json)
    finally:
        audit.close()
        journal.close()
    context.exit(code)


def _loop(reaper: Reaper, interval: float, *, as_json: bool) -> int:
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in _STOP_SIGNALS}
    try:
        reaper.run(stop, interval=interval, on_round=lambda report: _print_report(report, as_json=as_json, quiet=True))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _print_report(report: ReapReport, *, as_json: bool, quiet: bool = False) -> int:
    """Print one round and return the exit code."""
    is_empty = not (report.reaped or report.unknown or report.waiting or report.errors)
    if quiet and is_empty:
        return 0
    if as_json:
        click.echo(json.dumps(_report_shown(report)))
    else:
        for one in report.reaped:
            proof = f" ({one.ending.proof})" if one.ending.proof else ""
            detail = f": {one.ending.detail}" if one.ending.detail else ""
            click.echo(printable(f"{one.record.lease_id} {one.why}: {one.ending.outcome}{proof}{detail}"))
        for lease_id in report.unknown:
            click.echo(printable(f"{lease_id} is left alone: its issuer is not configured here"))
        for lease_id in report.waiting:
            click.echo(printable(f"{lease_id} is listed without a record here: ended once its time is up"))
        for what, why in report.errors.items():
            click.echo(printable(f"{what}: {why}"), err=True)
        if is_empty:
            click.echo("nothing to reap")
    return 1 if report.pending or report.unknown or report.errors else 0


def _report_shown(report: ReapReport) -> dict[str, Any]:
    return {
        "reaped": [
            {
                "lease_id": one.record.lease_id,
                "issuer": one.record.issuer,
                "why": one.why,
                "outcome": one.ending.outcome,
                "proof": one.ending.proof,
                "detail": one.ending.detail,
            }
            for one in report.reaped
        ],
        "unknown": list(report.unknown),
        "waiting": list(report.waiting),
        "errors": dict(report.errors),
    }
