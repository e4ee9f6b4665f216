# SPDX-License-Identifier: Apache-2.0
"""Blocking work of asynchronous callers, off their loop.

Holds `run_off_loop`: the synchronous procedures run in threads of our own, so that no rule is written twice and the
user's default executor cannot starve an ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_off_loop"]

_T = TypeVar("_T")
_THREADS = 32


class _Pool:
    """Threads of this process, made at the first use."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.executor: ThreadPoolExecutor | None = None

    def get(self) -> ThreadPoolExecutor:
        if self.executor is None:
            self.executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="jitwi-async")
        return self.executor


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.forget)


async def run_off_loop(job: Callable[[], _T]) -> _T:
    """Run `job` in a thread and wait for it; a cancellation is passed on at once, and the job still runs to its end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        try:
            tell = functools.partial(_succeed, answer, job())
        except BaseException as error:  # noqa: BLE001 - it is the caller's, on its own loop
            tell = functools.partial(_fail, answer, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell)

    _pool.get().submit(run)
    return await answer


def _succeed(answer: asyncio.Future[_T], result: _T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # a caller that is cancelled in this moment does not look at it, and that is no event
