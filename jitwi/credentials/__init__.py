# SPDX-License-Identifier: Apache-2.0
"""GETS: handles, the issuer port, plan and enforced scope, how one credential ends."""

from jitwi.credentials.bounded import call_bounded
from jitwi.credentials.ending import CredentialEnding, Outcome, end_lease
from jitwi.credentials.gate import Gate, Use
from jitwi.credentials.handle import CredentialHandle
from jitwi.credentials.plan import Plan, Strength, Wider
from jitwi.credentials.port import Issued, Issuer, LeaseRef, Order, ProbeResult, Services
from jitwi.credentials.reaping import make_reaper

__all__ = [
    "CredentialEnding",
    "CredentialHandle",
    "Gate",
    "Issued",
    "Issuer",
    "LeaseRef",
    "Order",
    "Outcome",
    "Plan",
    "ProbeResult",
    "Services",
    "Strength",
    "Use",
    "Wider",
    "call_bounded",
    "end_lease",
    "make_reaper",
]
