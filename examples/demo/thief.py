# SPDX-License-Identifier: Apache-2.0
"""Another process on the same machine that has copied a task token, and tries it.

Reads a JSON object from standard input: `url`, and the copied `Authorization` header. It cannot copy the key, so it
makes a proof with a key of its own. Prints the status and the reason that it got.
"""

from __future__ import annotations

import json
import sys

import httpx

from jitwi.clock import SystemClock
from jitwi.task import Entity, sha256_base64url
from jitwi.tokens import TaskKey, mint_proof


def main() -> None:
    """Try the copied token with a proof of our own."""
    loot = json.load(sys.stdin)
    token = loot["authorization"].partition(" ")[2]
    proof = mint_proof(
        TaskKey(),
        ath=sha256_base64url(token.encode()),
        method="GET",
        url=loot["url"],
        action=Entity("Shop::Action", "read"),
        resource=Entity("Shop::Order", "42"),
        digest=None,
        now=SystemClock().now().wall,
    )
    answer = httpx.get(loot["url"], headers={"Authorization": loot["authorization"], "DPoP": proof}, trust_env=False)
    print(json.dumps({"status": answer.status_code, "reason": answer.headers["X-Demo-Reason"]}))


if __name__ == "__main__":
    main()
