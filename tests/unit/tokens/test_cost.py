# SPDX-License-Identifier: Apache-2.0
"""What a token costs, as ratios to the bare signature in the same run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import cycle

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from jitwi.tokens import TaskTokenVerifier, mint_task_token

NOW = 1_800_000_000.0


def best(call: Callable[[], object], *, count: int = 40, rounds: int = 15) -> float:
    """The quickest round: other work on the machine only makes a round slower."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            call()
        times.append(time.perf_counter() - start)
    return min(times) / count


@pytest.mark.timing
@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer makes Python slow and crypto not")
def test_ratios(lab) -> None:
    """Verifying again is nearly free; minting and verifying cold cost a small multiple of the bare signature."""
    key, text = lab.identity.key.key, lab.mint()
    data, algorithm = text.encode(), ec.ECDSA(hashes.SHA256())
    signature, public = key.sign(data, algorithm), key.public_key()
    raw_sign = best(lambda: key.sign(data, algorithm))
    raw_verify = best(lambda: public.verify(signature, data, algorithm))
    claims = {
        "task": lab.task,
        "digest": lab.task.digest(txn=lab.TXN),
        "permissions": lab.task.permissions,
        "audience": lab.AUDIENCE,
        "jkt": lab.key.jkt,
        "txn": lab.TXN,
        "now": NOW,
        "ends_at": NOW + 120,
    }

    verifier = TaskTokenVerifier(lab.AUDIENCE, lab.bundles)
    verifier.verify(text, now=NOW)
    again = best(lambda: verifier.verify(text, now=NOW), count=1000)
    fresh = cycle([lab.mint() for _ in range(40)])
    cold_verifier = TaskTokenVerifier(lab.AUDIENCE, lab.bundles, cache_size=1)  # keeps the chain, forgets the token
    cold = best(lambda: cold_verifier.verify(next(fresh), now=NOW))
    mint = best(lambda: mint_task_token(lab.identity, **claims))
    print(f"again {again / raw_verify:.3f} cold {cold / raw_verify:.2f} mint {mint / raw_sign:.2f}")
    assert again <= 0.03 * raw_verify
    assert cold <= 5 * raw_verify
    assert mint <= 4 * raw_sign, f"{mint / raw_sign:.2f}"
