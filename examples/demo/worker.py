# SPDX-License-Identifier: Apache-2.0
"""A worker that is killed in mid-task: it opens a task with a backend credential, says so, and waits for its end.

    JITWI_CONFIG=caller.toml python worker.py

The Workload API comes from SPIFFE_ENDPOINT_SOCKET.
"""

from __future__ import annotations

import signal
import sys
from datetime import timedelta

import jitwi


def main() -> None:
    """Hold a credential until somebody ends this process."""
    order = jitwi.Entity("Shop::Order", "42")
    jit = jitwi.JIT.from_env()
    with jit.task(
        "refund-order",
        permissions={"read": order},
        purpose="a job that will not finish",
        ttl=timedelta(minutes=2),
        max_uses=5,
    ) as grant:
        grant.credential("ledger").use("read", order)
        sys.stdout.write("working\n")
        sys.stdout.flush()
        signal.pause()


if __name__ == "__main__":
    main()
