# SPDX-License-Identifier: Apache-2.0
"""What leaves the process and what a Guard does with it: task tokens, proofs, one check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.harness import Case, Row, each
from benchmarks.world import AUDIENCE, BOX
from jitwi.identity.x509_svid import _memory as _chain_memory
from jitwi.testing.guard import CaBundles
from jitwi.tokens import TaskTokenVerifier, mint_task_token

if TYPE_CHECKING:
    from benchmarks.world import World

ROWS = [
    Row("mint a task token / raw sign", "mint token", "raw sign", 1.6),
    Row("digest of a task, once per grant / raw sign", "digest", "raw sign"),
    Row("verify a new token, chain known / raw verify", "verify new token", "raw verify", 1.3),
    Row("verify a new token, chain new / raw verify", "verify new chain", "raw verify"),
    Row("verify again / verify a new token", "verify again", "verify new token", 0.03),
    Row("mint a proof / raw sign", "mint proof", "raw sign"),
    Row("check at a Guard", "guard check", "BASE_S"),
    Row("check at a Guard / two raw verifies", "guard check", ("raw verify", "raw verify")),
]


def cases(world: World) -> list[Case]:
    """Return the cases of tokens, proofs and the Guard."""
    caller = world.caller
    key = ec.generate_private_key(ec.SECP256R1())
    public, algorithm, data = key.public_key(), ec.ECDSA(hashes.SHA256()), b"x" * 1300
    signature = key.sign(data, algorithm)
    bundles = CaBundles(world.ca)
    verifier, forgetful = TaskTokenVerifier(AUDIENCE, bundles), TaskTokenVerifier(AUDIENCE, bundles, cache_size=0)

    def verify_new_chain() -> None:
        _chain_memory.results.clear()
        forgetful.verify(caller.token.text, now=caller.now())

    task, digest = caller.task, caller.task.digest(txn=caller.txn)

    def mint() -> object:
        return mint_task_token(
            caller.identity,
            task=task,
            digest=digest,
            permissions=task.permissions,
            audience=AUDIENCE,
            jkt=caller.key.jkt,
            txn=caller.txn,
            now=caller.now(),
            ends_at=caller.ends_at,
        )

    return [
        Case("raw sign", each(lambda: key.sign(data, algorithm))),
        Case("raw verify", each(lambda: public.verify(signature, data, algorithm))),
        Case("mint token", each(mint)),
        Case("digest", each(lambda: task.digest(txn=caller.txn))),
        Case(
            "verify new token",
            lambda tokens: [verifier.verify(token.text, now=caller.now()) for token in tokens],
            prepare=lambda count: [caller.mint() for _ in range(count)],
        ),
        Case("verify new chain", each(verify_new_chain)),
        Case("verify again", each(lambda: verifier.verify(caller.token.text, now=caller.now()))),
        Case("mint proof", each(lambda: caller.proof("act0", BOX))),
        Case(
            "guard check",
            lambda requests: [caller.guard.check(request, "act0", BOX) for request in requests],
            prepare=lambda count: [caller.request("act0", BOX) for _ in range(count)],
        ),
    ]
