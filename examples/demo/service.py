# SPDX-License-Identifier: Apache-2.0
"""A small orders service with a Guard in front: one process, its own identity, its own policies.

    python service.py --audience URL --origin-port-file FILE --state DIR [--endings DIR]

The Workload API comes from SPIFFE_ENDPOINT_SOCKET. Every answer to a refused request is what a stranger may know; the
reason is in the audit trail, and, as this is a demonstration, in the header `X-Demo-Reason`.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jitwi

POLICIES = Path(__file__).parent / "policies" / "service"


class Orders(BaseHTTPRequestHandler):
    """`GET /orders/ID` reads an order, `POST /orders/ID/refund` refunds a part of it."""

    guard: jitwi.Guard

    def do_GET(self) -> None:
        """Read."""
        self._serve("read", None)

    def do_POST(self) -> None:
        """Refund: the amount that the Guard is asked about is the one that is executed."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        self._serve(self.path.rsplit("/", 1)[-1], {"amount": body.get("amount")})

    def _serve(self, action: str, given: dict[str, Any] | None) -> None:
        order = jitwi.Entity("Shop::Order", self.path.split("/")[2])
        request = jitwi.Request(self.command, self.path, list(self.headers.items()))
        try:
            call = self.guard.check(request, action, order, input=given)
        except jitwi.JitwiError as error:
            answer = self.guard.answer(error)
            reason = error.reasons[0] if error.reasons else ""
            self._send(answer.status, answer.headers, answer.body, f"{type(error).__name__} {reason}")
            return
        done = {"order": order.id, "did": action, "input": given, "for": str(call.workload), "task": call.task.name}
        self._send(200, (("Content-Type", "application/json"),), json.dumps(done).encode(), "")

    def _send(self, status: int, headers: Any, body: bytes, reason: str) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("X-Demo-Reason", reason)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Print nothing: the audit trail has it."""


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--audience", required=True)
    parser.add_argument("--port-file", required=True, type=Path)
    parser.add_argument("--state", required=True)
    parser.add_argument("--endings", default=None)
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Orders)
    port = server.server_address[1]
    Orders.guard = jitwi.Guard(
        args.audience,
        POLICIES,
        origin=f"http://127.0.0.1:{port}",
        state_dir=args.state,
        endings_dir=args.endings,
    )
    Orders.guard.start()
    ready = args.port_file.with_suffix(".new")
    ready.write_text(str(port))
    ready.rename(args.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
