# SPDX-License-Identifier: Apache-2.0
"""A call into somebody else's code, with a deadline.

Holds `BoundedCall` and `call_bounded`: an issuer runs in a thread of its own, and when it hangs the thread is left
behind. How many may be left behind is bounded, for each issuer and in all; above that nothing is called any more
until some come back. Does not hold what a failure means: that is the caller's.

Example:
    >>> from jitwi.credentials.bounded import call_bounded
    >>> call_bounded("orders-db", lambda: 6 * 7, timeout=5.0)
    42
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from jitwi.errors import IssuanceError, JitwiError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_HUNG", "MAX_HUNG_PER_NAME", "BoundedCall", "call_bounded", "describe_failure"]

MAX_HUNG_PER_NAME = 4
MAX_HUNG = 32
MAX_DETAIL = 200

T = TypeVar("T")


def describe_failure(error: BaseException) -> str:
    """Return one printable line: our own message, or a stranger's type only, as its text may hold a secret."""
    text = error.message if isinstance(error, JitwiError) else f"it raised `{type(error).__name__}`"
    if error.__cause__ is not None and isinstance(error, JitwiError):
        text = f"{text} [{type(error.__cause__).__name__}]"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return line if len(line) <= MAX_DETAIL else f"{line[: MAX_DETAIL - 3]}..."


class _Hung:
    """How many calls were left behind, by name."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def require_room(self, name: str) -> None:
        with self.lock:
            here, everywhere = self.counts[name], self.counts.total()
        if here >= MAX_HUNG_PER_NAME or everywhere >= MAX_HUNG:
            raise IssuanceError(
                f"{here} calls to issuer `{name}` still hang, {everywhere} in all: no further one is made",
                reasons=("too-many-hung",),
                remedy="see why the backend does not answer",
            )


_hung = _Hung()
os.register_at_fork(after_in_child=_hung.reset)  # the threads that hang are the parent's


class BoundedCall(Generic[T]):
    """One call in a daemon thread of its own. Not reusable; the thread starts with `start()`.

    Args:
        name: Whose code it is: the issuer's configured name.
        function: What to call.
        on_late: Called in that thread with the answer, if it comes after `abandon()`: for undoing what nobody waited
            for. Whatever it raises is dropped.
    """

    def __init__(self, name: str, function: Callable[[], T], *, on_late: Callable[[T], object] | None = None) -> None:
        self._name = name
        self._function = function
        self._on_late = on_late
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._abandoned = False
        self._answer: list[T] = []
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start it.

        Raises:
            IssuanceError: Too many earlier calls hang (`too-many-hung`), or no thread can be had (`no-thread`).
        """
        _hung.require_room(self._name)
        try:
            threading.Thread(target=self._run, name=f"jitwi-call-{self._name}", daemon=True).start()
        except RuntimeError as exc:
            raise IssuanceError(
                f"no thread could be started for issuer `{self._name}`", reasons=("no-thread",)
            ) from exc

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds; True once it is over, whatever came of it."""
        return self._done.wait(max(0.0, timeout))

    def abandon(self) -> bool:
        """Stop waiting for good; False if it had finished after all."""
        with self._lock:
            if self._done.is_set():
                return False
            if not self._abandoned:
                self._abandoned = True
                with _hung.lock:
                    _hung.counts[self._name] += 1
            return True

    def result(self) -> T:
        """Return the answer of a finished call.

        Raises:
            JitwiError: What the function raised, if it is ours.
            IssuanceError: It raised something else (`issuer-raised`); the cause is attached.
        """
        if self._error is None:
            return self._answer[0]
        if isinstance(self._error, JitwiError):
            raise self._error
        raise IssuanceError(
            f"issuer `{self._name}` failed: {describe_failure(self._error)}", reasons=("issuer-raised",)
        ) from self._error

    def _run(self) -> None:
        try:
            self._answer.append(self._function())
        except BaseException as exc:  # noqa: BLE001 - SystemExit too: in this thread it can only be the issuer's
            self._error = exc
        with self._lock:
            self._done.set()
            late = self._abandoned
        if not late:
            return
        with _hung.lock:
            _hung.counts[self._name] = max(0, _hung.counts[self._name] - 1)
        if self._on_late is not None and self._error is None:
            with suppress(BaseException):  # nobody is left to tell; journal and reaper carry the promise
                self._on_late(self._answer[0])


def call_bounded(
    name: str, function: Callable[[], T], *, timeout: float, on_late: Callable[[T], object] | None = None
) -> T:
    """Call `function` in a thread of its own and wait for it.

    Args:
        name: The issuer's configured name, for messages and for the bound on hanging calls.
        function: What to call.
        timeout: Seconds.
        on_late: See `BoundedCall`.

    Returns:
        What it returned.

    Raises:
        IssuanceError: No answer in time (`deadline`), too many earlier calls hang, or the issuer raised something.
        JitwiError: What the issuer raised, if it is ours.
    """
    call = BoundedCall(name, function, on_late=on_late)
    call.start()
    try:
        finished = call.wait(timeout)
    except BaseException:
        call.abandon()
        raise
    if not finished and call.abandon():
        raise IssuanceError(f"issuer `{name}` did not answer within {timeout:g} s", reasons=("deadline",))
    return call.result()
