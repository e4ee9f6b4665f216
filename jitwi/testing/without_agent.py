# SPDX-License-Identifier: Apache-2.0
"""A `JIT` for tests: no agent, no gRPC, no home folder.

Holds `jit`. Everything but the identity is the real thing: policies, grants, audit, stores.
"""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from jitwi.jit import JIT
from jitwi.testing.identity import FixedIdentity

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from jitwi.clock import Clock
    from jitwi.credentials import Issuer
    from jitwi.policy import PolicyStore
    from jitwi.spiffe_id import SpiffeId
    from jitwi.testing.ca import TestCa

__all__ = ["jit"]


def jit(
    as_: SpiffeId | str,
    policies: str | os.PathLike[str] | PolicyStore,
    *,
    issuers: Mapping[str, Issuer] | None = None,
    ca: TestCa | None = None,
    clock: Clock | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> JIT:
    """Return a `JIT` that acts as a workload which no agent knows.

    Args:
        as_: SPIFFE ID of the workload.
        policies: As for `JIT`.
        issuers: As for `JIT`.
        ca: The authority that signs its SVID; give a Guard's test the same one. None makes one.
        clock: As for `JIT`; a `FakeClock` moves time by hand.
        state_dir: As for `JIT`; None makes a temporary folder that `close()` removes.
        **settings: Further arguments of `JIT`. `identity=` brings a `FixedIdentity` of your own, to withdraw or rotate.
    """
    settings.setdefault("identity", FixedIdentity(as_, ca=ca, clock=clock))
    folder = tempfile.mkdtemp(prefix="jw-jit-") if state_dir is None else state_dir
    kind = JIT if state_dir is not None else _TemporaryJit
    return kind(policies, issuers=issuers, clock=clock, state_dir=folder, **settings)


class _TemporaryJit(JIT):
    """Takes its folder along when it is closed."""

    def close(self) -> None:
        super().close()
        shutil.rmtree(str(self._state_dir), ignore_errors=True)
