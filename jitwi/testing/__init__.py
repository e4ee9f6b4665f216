# SPDX-License-Identifier: Apache-2.0
"""For tests, of jitwi and of code that uses it. Nothing in here protects anything.

Holds fakes that are real servers on real sockets, a certificate authority, a clock to be moved by hand, and a pytest
plugin. Names are loaded when they are first used: the fake Workload API needs gRPC, `jit` does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jitwi.testing.audit import RecordingSink
    from jitwi.testing.backend import TestingBackend
    from jitwi.testing.backend_issuer import BackendIssuer
    from jitwi.testing.ca import TestCa
    from jitwi.testing.clock import FakeClock
    from jitwi.testing.guard import CaBundles, Caller, call
    from jitwi.testing.identity import FixedIdentity
    from jitwi.testing.without_agent import jit
    from jitwi.testing.workload_api import FakeWorkloadApi

__all__ = [
    "BackendIssuer",
    "CaBundles",
    "Caller",
    "FakeClock",
    "FakeWorkloadApi",
    "FixedIdentity",
    "RecordingSink",
    "TestCa",
    "TestingBackend",
    "call",
    "jit",
]

_HOME = {
    "BackendIssuer": "backend_issuer",
    "CaBundles": "guard",
    "Caller": "guard",
    "FakeClock": "clock",
    "FakeWorkloadApi": "workload_api",
    "FixedIdentity": "identity",
    "RecordingSink": "audit",
    "TestCa": "ca",
    "TestingBackend": "backend",
    "call": "guard",
    "jit": "without_agent",
}


def __getattr__(name: str) -> Any:
    """Load a name from its module."""
    module = _HOME.get(name)
    if module is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
