# SPDX-License-Identifier: Apache-2.0
"""The guarded service: plain `http.server`, two Guards and a strict JWT-SVID verifier, all on one identity source."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import control

import jitwi
from jitwi.clock import SystemClock
from jitwi.errors import JitwiError
from jitwi.identity import WorkloadApiSource, parse_and_verify
from jitwi.spiffe_id import TrustDomain

CONFIG = control.configuration()
executed = []


class Handler(BaseHTTPRequestHandler):
    """`POST /orders/42/refund`: the path says what is done to what, the body is the input of the use."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        """Answer one request."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        _, room, number, action = self.path.split("/")
        try:
            done = self.report() if room == "reports" else self.order(room, number, action, body)
        except JitwiError as error:
            executed.append({"refused": type(error).__name__, "room": room})
            told = jitwi.Guard.answer(error)
            self.answer(told.status, told.body, told.headers)
        else:
            executed.append({"done": action, "room": room, **done})
            self.answer(200, b"{}")

    def order(self, room, number, action, body):
        """Ask the room's Guard and execute."""
        given = None if body is None else {"amount": body["amount"]}
        request = jitwi.Request("POST", self.path, self.headers.items())
        call = guards[room].check(request, action, jitwi.Entity("Shop::Order", number), input=given)
        return {"workload": str(call.workload), "txn": call.txn, "input": given, "owner": call.owner}

    def report(self):
        """Verify a bearer JWT-SVID."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        assert scheme == "Bearer"
        found = parse_and_verify(
            token, audience=CONFIG["reports_audience"], bundles=source, now=SystemClock().now().wall
        )
        return {"workload": str(found.spiffe_id)}

    def answer(self, status, body, headers=()):
        """Send an answer."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Standard error is for what went wrong."""


def last():
    """What became of the last request."""
    return executed[-1]


def authorities(count, seconds):
    """Wait until the bundle of our trust domain has so many X.509 authorities; return how many seconds it took."""
    domain = TrustDomain.parse(CONFIG["trust_domain"])
    began = SystemClock().now().boot
    while len(source.x509_bundle(domain).authorities) != count:
        if SystemClock().now().boot - began > seconds:
            return None
        time.sleep(0.01)
    return SystemClock().now().boot - began


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
origin = f"http://127.0.0.1:{server.server_port}"
source = WorkloadApiSource()
guards = {
    room: jitwi.Guard(
        f"https://{room}.example.test",
        CONFIG["policies"],
        identity=source,
        state_dir=f"{CONFIG['state']}/{room}",
        endings_dir=CONFIG["endings"],
        origin=origin,
        proof_window=timedelta(minutes=5),
    )
    for room in ("orders", "billing")
}
for guard in guards.values():
    guard.start()
threading.Thread(target=server.serve_forever, daemon=True).start()
control.serve({"last": last, "authorities": authorities}, origin=origin)
server.shutdown()
for guard in guards.values():
    guard.close()
source.close()
