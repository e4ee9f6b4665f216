# SPDX-License-Identifier: Apache-2.0
"""Places at which a process under test kills itself, to show what is left behind. For tests only.

Holds `kill_point` and `Mortal`. The product has no such places: a test wraps the parts it hands to the product. The
environment names the place, `JITWI_TESTING_KILL_AT=journal.intend.after`, or the n-th time it is passed,
`...=issuer.end.before:3`. Nothing outside `jitwi.testing` reads that variable.

Example:
    >>> from jitwi.testing.kill_point import Mortal
    >>> Mortal({"a": 1}, "dictionary").get("a")  # would die at `dictionary.get.before` or `dictionary.get.after`
    1
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections import Counter
from typing import Any

__all__ = ["KILL_AT_VARIABLE", "Mortal", "kill_point"]

KILL_AT_VARIABLE = "JITWI_TESTING_KILL_AT"

_lock = threading.Lock()
_passed: Counter[str] = Counter()


def kill_point(name: str) -> None:
    """Send SIGKILL to this very process if the environment names this place."""
    wanted, _, number = os.environ.get(KILL_AT_VARIABLE, "").partition(":")
    if wanted != name:
        return
    with _lock:
        _passed[name] += 1
        passed = _passed[name]
    if passed == int(number or "1"):
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """Wraps any object: each call of a method passes the kill points `NAME.METHOD.before` and `NAME.METHOD.after`.

    Args:
        inner: What is wrapped: a journal, an issuer, an audit, a handle.
        name: First part of the names of its kill points.
    """

    def __init__(self, inner: Any, name: str) -> None:
        self._inner = inner
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._inner, attribute)
        if attribute.startswith("__") or not callable(value):
            return value

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            kill_point(f"{self._name}.{attribute}.before")
            result = value(*args, **kwargs)
            kill_point(f"{self._name}.{attribute}.after")
            return result

        return call
