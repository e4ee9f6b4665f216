# SPDX-License-Identifier: Apache-2.0
"""One credential of a grant, registered before it exists.

Holds `Slot`. Does not hold the secret: that is in the handle, or in the `LeaseRef` that ends and probes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from jitwi.grants.lease import EndCause, Lease

if TYPE_CHECKING:
    from jitwi.clock import Deadline, Instant
    from jitwi.credentials import CredentialEnding, CredentialHandle, Issuer, LeaseRef, Order, Plan

__all__ = ["Slot"]


@attrs.define(slots=True, eq=False, repr=False)
class Slot:
    """One credential of a grant.

    Args:
        name: The issuer's configured name.
        issuer: Who makes and ends it.
        order: What was asked.
        plan: What was answered.
        indexes: Which of the task's permissions it serves.
        deadline: When it ends at the latest.
        ref: What `end` and `probe` get.
        handle: What the user holds, once issued.
        ending: How it ended, once it did.
    """

    name: str
    issuer: Issuer
    order: Order
    plan: Plan
    indexes: tuple[int, ...]
    deadline: Deadline
    ref: LeaseRef
    handle: CredentialHandle | None = None
    ending: CredentialEnding | None = None

    @property
    def lease_id(self) -> str:
        """Our id of the credential."""
        return self.order.lease_id

    def require_live(self, now: Instant) -> None:
        """Require that the credential has not passed its own end.

        Raises:
            GrantExpiredError: It has.
        """
        if self.deadline.is_passed(now):
            raise Lease.error(EndCause.EXPIRED)
