# SPDX-License-Identifier: Apache-2.0
"""One credential of a grant, registered before it exists.

Holds `Slot`. Does not hold the secret: that is in the handle, or in the `LeaseRef` that ends and probes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from jitwi.errors import GrantExpiredError

if TYPE_CHECKING:
    from jitwi.clock import Deadline, Instant
    from jitwi.credentials import CredentialEnding, CredentialHandle, Issuer, LeaseRef, Order, Plan

__all__ = ["CREDENTIAL_EXPIRED", "Slot"]

CREDENTIAL_EXPIRED = "credential-expired"
"""Reason code: this credential is over before its task is."""


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
        is_being_made: True until its issuer has answered or is not waited for any more: what is not yet there cannot
            be proven to be over.
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
    is_being_made: bool = True

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
            raise GrantExpiredError(
                f"the credential of issuer `{self.name}` has expired",
                reasons=(CREDENTIAL_EXPIRED,),
                remedy=f"call `grant.credential({self.name!r})` for a new one",
                cause="expired",
            )
