# SPDX-License-Identifier: Apache-2.0
"""The block around a grant: `with`, `async with` and the decorator.

Holds `TaskBlock`, which is entered once and is not the grant itself: only the interpreter's `with` machinery keeps it
alive, so when a block is left in a way that skips its exit, the block is collected and the watchdog hears of it. Does
not hold the rules of opening and ending.

Note:
    A signal can land between the end of `__enter__` and the first line of the body, or inside either method. The
    registry, the deadline and the reaper cover what `with` cannot.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import os
import warnings
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jitwi.delegation import inherit
from jitwi.errors import ConfigurationError, JitwiError, RevocationPendingError, StateError
from jitwi.grants import ending as _ending
from jitwi.grants.async_grant import AsyncGrant
from jitwi.grants.lease import EndCause
from jitwi.grants.off_loop import run_off_loop
from jitwi.grants.opening import open_grant
from jitwi.secret import NoCopy
from jitwi.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from jitwi.grants.ending import Ending
    from jitwi.grants.grant import Grant
    from jitwi.grants.runtime import Runtime

__all__ = ["TaskBlock"]

_F = TypeVar("_F", bound="Callable[..., Any]")


class _State(enum.Enum):
    NEW = "new"
    ENTERED = "entered"
    EXITED = "exited"


_WRONG_STATE = {
    _State.ENTERED: "this task block is entered already",
    _State.EXITED: "this task block was left already",
}


class TaskBlock(NoCopy):
    """A declared task, to be entered once with `with` or `async with`, or used as a decorator.

    Args:
        runtime_of: Returns the rooms; starts them at the first call.
        name: Name of the task class.
        declaration: The fields of `Task.declare`. `permissions` may be a callable for the decorator.
        parent: The grant that this is a child of.
        raise_on_pending: Raise `RevocationPendingError` at a good end if some credential is not proven to be over.

    Raises:
        InvalidTaskError: The declaration is out of bounds.

    Warns:
        ResourceWarning: It was entered and never left.
    """

    __slots__ = (
        "__weakref__",
        "_declaration",
        "_grant",
        "_grant_id",
        "_is_cancelled",
        "_name",
        "_parent",
        "_raise_on_pending",
        "_runtime",
        "_runtime_of",
        "_state",
        "_task",
    )

    def __init__(
        self,
        runtime_of: Callable[[], Runtime],
        name: str,
        declaration: dict[str, Any],
        *,
        parent: Grant | None = None,
        raise_on_pending: bool = False,
    ) -> None:
        self._state = _State.NEW
        self._runtime: Runtime | None = None
        self._grant: Grant | None = None
        self._grant_id = ""
        self._is_cancelled = False
        self._runtime_of = runtime_of
        self._name = name
        self._declaration: dict[str, Any] | None = declaration
        self._parent = parent
        self._raise_on_pending = raise_on_pending
        self._task: Task | None = None if callable(declaration.get("permissions")) else self._declare(declaration)

    def _declare(self, declaration: dict[str, Any]) -> Task:
        if self._parent is not None:
            declaration = inherit(declaration, self._parent.declaration)
        return Task.declare(self._name, **declaration)

    # -- synchronous ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Grant:
        """Open the task.

        Raises:
            StateError: Entered before.
            JitwiError: As `open_grant` does; nothing is left then.
        """
        task = self._become_entered()
        return self._open(task)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End the task, whatever happened in the block; its exception goes on unchanged.

        Raises:
            RevocationPendingError: Only with `raise_on_pending`, and only if the block itself did not fail.
        """
        grant = self._require_grant()
        if grant.runtime.pid != os.getpid():  # a forked child leaves the parent's block: nothing here is its own
            self._state = _State.EXITED
            return
        _ending.complete_now(grant, _cause(exc_type), "" if exc_type is None else exc_type.__name__)
        self._state = _State.EXITED
        if grant.slots:
            self._tell(grant.ending, exc)

    # -- asynchronous --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> AsyncGrant:
        """Open the task without blocking the loop.

        Raises:
            StateError: Entered before.
            JitwiError: As `open_grant` does; nothing is left then.
        """
        task = self._become_entered()
        try:
            grant = await run_off_loop(lambda: self._open_unless_cancelled(task))
        except BaseException:  # cancelled, or its frame is closed because its loop is gone
            self._cancel()
            raise
        return AsyncGrant(grant)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End the task; a cancellation that comes meanwhile is passed on and does not stop the ending.

        Raises:
            RevocationPendingError: Only with `raise_on_pending`, and only if the block itself did not fail.
        """
        grant = self._require_grant()
        if grant.runtime.pid != os.getpid():
            self._state = _State.EXITED
            return
        cause, detail = _cause(exc_type), "" if exc_type is None else exc_type.__name__
        if grant.slots or grant.children:
            _ending.stop(grant, cause)
            self._state = _State.EXITED  # over from here on, and its ending goes on, whatever becomes of this frame
            if exc_type is not None and issubclass(exc_type, GeneratorExit):
                return  # a frame that is being closed cannot wait
            self._tell(await run_off_loop(lambda: _ending.end_now(grant, cause, detail)), exc)
        else:
            _ending.complete_now(grant, cause, detail)
            self._state = _State.EXITED

    def _open(self, task: Task) -> Grant:
        try:
            self._runtime = runtime = self._runtime_of()
            self._grant = grant = open_grant(runtime, task, grant_id=self._grant_id, parent=self._parent)
        except JitwiError:
            self._state = _State.EXITED  # nothing was left open, so there is nothing to leave
            raise
        return grant

    def _open_unless_cancelled(self, task: Task) -> Grant:
        grant = self._open(task)
        if self._is_cancelled:
            _ending.stop(grant, EndCause.CANCELLED)
            self._state = _State.EXITED
        return grant

    def _cancel(self) -> None:
        """Nobody will enter the block: whichever of this and the opening thread comes second ends the grant."""
        self._is_cancelled = True
        grant = self._grant
        if grant is not None:
            _ending.stop(grant, EndCause.CANCELLED)
            self._state = _State.EXITED

    # -- decorator -----------------------------------------------------------------------------------------------

    def __call__(self, function: _F) -> _F:
        """Run `function` inside a new task at each call.

        A parameter named `grant` of the function receives the grant; callers do not pass it. Where `permissions` is a
        callable it gets the function's bound arguments.

        Args:
            function: A function or coroutine function.

        Raises:
            ConfigurationError: It is a generator function: its frame outlives the call, so its task would end before
                its first line runs.
            StateError: The block was entered before.
        """
        if self._declaration is None:
            raise self._wrong_state()
        declaration = self._declaration
        if self._task is not None:  # as they were given: an iterator is used up, a mapping may change
            declaration = {**declaration, "permissions": self._task.permissions}
        declare = functools.partial(self._for_call, declaration)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            msg = f"`{function.__name__}` is a generator function, whose body runs after the call has returned"
            raise ConfigurationError(
                msg, reasons=("generator",), remedy="open the task with `with` inside the code that consumes it"
            )
        signature = inspect.signature(function)
        wants_grant = "grant" in signature.parameters
        visible = signature.replace(parameters=[p for n, p in signature.parameters.items() if n != "grant"])

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                async with declare(visible, args, kwargs) as grant:
                    return await function(*args, **kwargs, **({"grant": grant} if wants_grant else {}))

            wrapped: Any = run_async
        else:

            @functools.wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                with declare(visible, args, kwargs) as grant:
                    return function(*args, **kwargs, **({"grant": grant} if wants_grant else {}))

            wrapped = run
        wrapped.__signature__ = visible
        return cast("_F", wrapped)

    def _for_call(
        self,
        declaration: dict[str, Any],
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> TaskBlock:
        permissions = declaration.get("permissions")
        if callable(permissions):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            declaration = {**declaration, "permissions": permissions(*bound.args, **bound.kwargs)}
        return TaskBlock(
            self._runtime_of,
            self._name,
            declaration,
            parent=self._parent,
            raise_on_pending=self._raise_on_pending,
        )

    # -- both ----------------------------------------------------------------------------------------------------

    def _become_entered(self) -> Task:
        if self._state is not _State.NEW:
            raise self._wrong_state()
        task = self._task
        if task is None:
            msg = "`permissions` is a callable, and a block has no arguments to give it"
            raise ConfigurationError(msg, remedy="use it as a decorator, or give a mapping")
        self._grant_id = os.urandom(16).hex()
        self._state = _State.ENTERED
        self._declaration = self._task = None  # from here on the grant has what was allowed
        return task

    def _wrong_state(self) -> StateError:
        return StateError(
            _WRONG_STATE[self._state], reasons=(self._state.value,), remedy="call `jit.task(...)` for each block"
        )

    def _require_grant(self) -> Grant:
        if self._grant is None:
            msg = "this task block was not entered"
            raise StateError(msg, reasons=("not-entered",))
        return self._grant

    def _tell(self, ending: Ending | None, exc: BaseException | None) -> None:
        if ending is None or not ending.is_pending:
            return
        pending = [c for c in ending.credentials if not c.outcome.is_over]
        what = ", ".join(f"{c.issuer}: {c.detail}" for c in pending)
        message = f"{len(pending)} credential(s) of task `{self._name}` are not proven to be over yet: {what}"
        if exc is not None:
            exc.add_note(message)
        elif self._raise_on_pending:
            raise RevocationPendingError(
                message, reasons=("pending",), remedy="the reaper goes on; see `python -m jitwi leases`", ending=ending
            )

    def __del__(self) -> None:
        """Tell the watchdog if the block was entered and its exit never ran to its end."""
        if getattr(self, "_state", _State.NEW) is not _State.ENTERED:
            return
        runtime = self._runtime
        if runtime is None or runtime.pid != os.getpid() or runtime.registry.get(self._grant_id) is None:
            return
        runtime.watchdog.leaked(self._grant_id)
        warnings.warn(
            f"task `{self._name}` was entered and its block never left", ResourceWarning, stacklevel=2, source=self
        )


def _cause(exc_type: type[BaseException] | None) -> EndCause:
    if exc_type is None:
        return EndCause.BLOCK_ENDED
    if issubclass(exc_type, asyncio.CancelledError | GeneratorExit):
        return EndCause.CANCELLED
    return EndCause.BLOCK_FAILED
