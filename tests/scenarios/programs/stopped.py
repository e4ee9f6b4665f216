# SPDX-License-Identifier: Apache-2.0
"""Holds a backend credential in an open block until the process is stopped. Arguments: how, address, token, state.

`how`: `block` stays inside the block, `exit` leaves the interpreter without leaving the block, `own` has a handler of
its own for SIGTERM.
"""

import signal
import sys
import threading
from datetime import timedelta

import jitwi
import jitwi.testing
from jitwi.policy import PolicyStore
from jitwi.secret import Secret
from jitwi.testing import BackendIssuer


def main():
    """Open, say so, wait."""
    how, address, token, state = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have left it ignored
    store = PolicyStore.from_text(
        policies="permit (principal, action, resource);",
        schema="namespace S { entity O; action a appliesTo { principal: [Jitwi::Workload], resource: [O],"
        " context: { task: Jitwi::Task } }; }",
    )
    issuer = BackendIssuer(address, Secret(token))
    jit = jitwi.testing.jit("spiffe://example.org/a", store, issuers={"backend": issuer}, state_dir=state)
    if how == "own":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
    order = jitwi.Entity("S::O", "1")
    block = jit.task("x", permissions={"a": order}, ttl=timedelta(minutes=5))
    grant = block.__enter__()
    grant.credential("backend").use("a", order)
    print("open", flush=True)
    if how == "exit":
        sys.exit(0)
    while True:
        threading.Event().wait(0.2)


main()
