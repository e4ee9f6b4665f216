# SPDX-License-Identifier: Apache-2.0
"""The walk of one task, and everything that a sceptic would try against it.

Starts an embedded Workload API for two workloads (a real gRPC server on a real Unix socket, standing in for SPIRE), an
orders service behind a Guard in a process of its own, and then acts as the caller. Every line says what was tried, what
came back and who refused. The exit status is 0 only if every line came out as it must.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx
from rich.console import Console
from rich.table import Table

import jitwi
from jitwi.audit import verify
from jitwi.issuers import JwtSvid, TaskTokens
from jitwi.testing import FakeWorkloadApi, TestCa, TestingBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
AUDIENCE = "https://orders.example.org"
BILLING = "https://billing.example.org"
ORDER = jitwi.Entity("Shop::Order", "42")
OTHER = jitwi.Entity("Shop::Order", "43")
TTL = timedelta(minutes=2)
START_SECONDS = 30.0


@attrs.define
class Lab:
    """What the walk needs around it."""

    folder: Path
    agent: str
    orders: str
    billing: str
    backend: TestingBackend
    rows: list[tuple[str, str, str, bool]] = attrs.field(factory=list)

    def row(self, tried: str, *, expect: str, got: str, where: str = "") -> None:
        """Note one line: it is as it must be if `expect` is in what came back."""
        self.rows.append((tried, got, where, expect in got))

    def refused(self, tried: str, attempt: Callable[[], object], *, expect: str, where: str = "caller") -> None:
        """Note what an attempt that must be refused on the caller's side raises."""
        try:
            attempt()
        except jitwi.JitwiError as error:
            reason = error.reasons[0] if error.reasons else ""
            self.row(tried, expect=expect, got=f"{type(error).__name__} {reason}", where=where)
        else:
            self.row(tried, expect=expect, got="ALLOWED", where=where)


def service_says(answer: httpx.Response) -> str:
    """Return status and reason of an answer."""
    return f"{answer.status_code} {answer.headers.get('X-Demo-Reason', '')}".strip()


def copied(handle: Any, method: str, url: str, action: str, given: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the headers of one use, as somebody who reads the wire would have them."""
    headers: dict[str, str] = handle.headers(method, url, action, ORDER, input=given)
    return headers


def walk(lab: Lab) -> None:
    """Everything up to the crash."""
    web = httpx.Client(base_url=lab.orders, trust_env=False)
    jit = jitwi.JIT(
        HERE / "policies" / "caller",
        issuers={
            "orders-api": TaskTokens(AUDIENCE, origin=lab.orders, serves=["read", "refund"]),
            "whole-identity": JwtSvid(AUDIENCE, serves=["read"]),
        },
        endpoint=lab.agent,
        state_dir=lab.folder / "caller",
    )
    declared = {"permissions": {"read": ORDER, "refund": ORDER}, "purpose": "customer request", "ttl": TTL}
    with jit:
        with jit.task("refund-order", max_uses=8, **declared) as grant:
            token = grant.credential("orders-api")
            auth = token.auth("refund", ORDER, input={"amount": 30})
            answer = web.post("/orders/42/refund", auth=auth, json={"amount": 30})
            lab.row(
                "refund 30 on order 42, as declared", expect="200", got=service_says(answer), where="allowed by both"
            )

            lab.refused(
                "another action: cancel",
                lambda: copied(token, "POST", f"{lab.orders}/orders/42/cancel", "cancel"),
                expect="OutOfScopeError",
            )
            spare = copied(token, "GET", f"{lab.orders}/orders/42", "read")
            answer = web.post("/orders/42/cancel", headers=spare, json={})
            lab.row("  the proof for a read, sent to cancel", expect="401", got=service_says(answer), where="service")

            lab.refused(
                "another resource: order 43",
                lambda: token.headers("GET", f"{lab.orders}/orders/43", "read", OTHER),
                expect="OutOfScopeError",
            )
            answer = web.get("/orders/43", headers=spare)
            lab.row("  the proof for 42, sent to 43", expect="401", got=service_says(answer), where="service")

            lab.refused(
                "another audience: billing",
                lambda: copied(token, "GET", f"{lab.billing}/orders/42", "read"),
                expect="OutOfScopeError",
            )
            answer = httpx.get(f"{lab.billing}/orders/42", headers=spare, trust_env=False)
            lab.row(
                "  the token, copied to billing", expect="401 WrongAudience", got=service_says(answer), where="service"
            )

            auth = token.auth("refund", ORDER, input={"amount": 30})
            answer = web.post("/orders/42/refund", auth=auth, json={"amount": 30000})
            lab.row("declared 30, body says 30000", expect="InputMismatch", got=service_says(answer), where="service")

            loot = json.dumps({"url": f"{lab.orders}/orders/42", "authorization": spare["Authorization"]})
            thief = subprocess.run(
                [sys.executable, str(HERE / "thief.py")],
                input=loot,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            got = json.loads(thief.stdout)
            lab.row(
                "the token, copied to another process",
                expect="401",
                got=f"{got['status']} {got['reason']}",
                where="service",
            )

            first = web.get("/orders/42", headers=spare)
            again = web.get("/orders/42", headers=spare)
            lab.row(
                "the same request, sent twice",
                expect="200, then 401 Replayed",
                got=f"{first.status_code}, then {service_says(again)}",
                where="service",
            )
            late = copied(token, "GET", f"{lab.orders}/orders/42", "read")
        ending = grant.ending
        outcome = ending.credentials[0].outcome.value if ending is not None else "none"
        lab.row("the block ends", expect="by_construction", got=f"{outcome}: the task's key is destroyed", where="")
        lab.refused(
            "use after the end",
            lambda: copied(token, "GET", f"{lab.orders}/orders/42", "read"),
            expect="GrantEndedError",
        )
        answer = web.get("/orders/42", headers=late)
        lab.row("  a proof made before, sent after", expect="TaskEnded", got=service_says(answer), where="service")

        lab.refused(
            "a task that policy denies: cancel",
            jit.task("refund-order", permissions={"cancel": ORDER}, purpose="x", ttl=TTL, max_uses=1).__enter__,
            expect="AccessDeniedError",
            where="policy",
        )
        lab.refused(
            "a kind of task that nobody registered",
            jit.task("tidy-up", permissions={"read": ORDER}, ttl=TTL).__enter__,
            expect="AccessDeniedError",
            where="tasks.toml",
        )
        with jit.task("refund-order", permissions={"read": ORDER}, purpose="x", ttl=TTL, max_uses=1) as grant:
            lab.refused(
                "a credential wider than declared",
                lambda: grant.credential("whole-identity"),
                expect="ScopeTooWideError",
                where="policy",
            )
    web.close()


def crash(lab: Lab) -> None:
    """A process dies with -9 in mid-task; the reaper ends what it left at the backend."""
    token_file = lab.folder / "ledger.token"
    token_file.touch(0o600)
    token_file.write_text(lab.backend.admin_token.reveal())
    config = lab.folder / "caller.toml"
    config.write_text(
        f'policies = "{HERE / "policies" / "caller"}"\nstate_dir = "{lab.folder / "caller"}"\n'
        f'[identity]\nendpoint = "{lab.agent}"\n'
        f'[issuers.ledger]\ntype = "testing-backend"\naddress = "{lab.backend.address}"\n'
        f'admin_token_file = "{token_file}"\nserves = ["read"]\n'
    )
    environment = {**os.environ, "JITWI_CONFIG": str(config)}
    worker = subprocess.Popen(
        [sys.executable, str(HERE / "worker.py")], env=environment, stdout=subprocess.PIPE, text=True
    )
    with worker:
        said = worker.stdout.readline().strip() if worker.stdout is not None else ""
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
    left = lab.backend.leases()
    lab.row(
        "kill -9 in mid-task",
        expect="working, 1 credential",
        got=f"{said}, {len(left)} credential left at the backend",
        where="",
    )
    reaped = subprocess.run(
        [sys.executable, "-m", "jitwi", "reap", "--once", "--config", str(config), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    outcome = "verified" if "verified" in reaped.stdout else reaped.stdout[-200:] + reaped.stderr[-200:]
    lab.row(
        "  python -m jitwi reap",
        expect="verified, 0 left",
        got=f"{outcome}, {len(lab.backend.leases())} left",
        where="reaper",
    )


def record(lab: Lab) -> None:
    """The audit of all of it, verified, and with one byte changed."""
    for side in ("caller", "service"):
        found = verify(lab.folder / side / "audit")
        got = f"{'intact' if found.is_intact else 'BROKEN'}: {found.records} records in {len(found.chains)} chain(s)"
        lab.row(f"the audit trail of the {side}", expect="intact", got=got, where="jitwi audit verify")
    forged = lab.folder / "forged"
    shutil.copytree(lab.folder / "caller" / "audit", forged)
    chain = max((p for p in forged.glob("*.jsonl") if p.name != "index.jsonl"), key=lambda p: p.stat().st_size)
    data = bytearray(chain.read_bytes())
    data[len(data) // 2] ^= 1
    chain.write_bytes(data)
    found = verify(forged)
    report = next((c for c in found.chains if not c.is_intact), None)
    got = "intact" if report is None else f"broken at line {report.line}: {report.problem}"
    lab.row("  the same with one byte changed", expect="broken", got=got, where="jitwi audit verify")


@contextlib.contextmanager
def service(folder: Path, name: str, audience: str, endpoint: str, endings: Path) -> Iterator[str]:
    """Run the orders service in a process of its own; yields its URL."""
    port_file = folder / f"{name}.port"
    process = subprocess.Popen(
        [
            sys.executable, str(HERE / "service.py"), "--audience", audience, "--port-file", str(port_file),
            "--state", str(folder / name), "--endings", str(endings),
        ],
        env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": endpoint},
    )  # fmt: skip
    try:
        pause = threading.Event()
        for _ in range(int(START_SECONDS * 50)):
            if port_file.exists() or process.poll() is not None:
                break
            pause.wait(0.02)
        yield f"http://127.0.0.1:{port_file.read_text()}"
    finally:
        process.terminate()
        process.wait(10)


def show(lab: Lab) -> bool:
    """Print the walk as one table; True if every line came out as it must."""
    table = Table("", "what was tried", "what came back", "by", box=None, pad_edge=False)
    for tried, got, where, is_right in lab.rows:
        table.add_row("[green]ok[/]" if is_right else "[red]NO[/]", tried, got, where)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print("\nThe walk of one task: [bold]refund-order[/] by spiffe://example.org/ns/prod/refunds\n")
    console.print(table)
    wrong = sum(1 for row in lab.rows if not row[3])
    console.print(f"\n{len(lab.rows) - wrong} of {len(lab.rows)} lines as they must be. Records: {lab.folder}\n")
    return wrong == 0


def main() -> int:
    """Run the walk and return the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="jw-demo-"))
    ca = TestCa("example.org")
    with (
        FakeWorkloadApi("spiffe://example.org/ns/prod/refunds", ca=ca) as caller_agent,
        FakeWorkloadApi("spiffe://example.org/ns/prod/orders", ca=ca) as service_agent,
        TestingBackend(folder / "backend") as backend,
        service(folder, "service", AUDIENCE, service_agent.socket, folder / "caller" / "endings") as orders,
        service(folder, "billing", BILLING, service_agent.socket, folder / "caller" / "endings") as billing,
    ):
        lab = Lab(folder, caller_agent.socket, orders, billing, backend)
        walk(lab)
        crash(lab)
    record(lab)
    return 0 if show(lab) else 1


if __name__ == "__main__":
    sys.exit(main())
