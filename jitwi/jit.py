# SPDX-License-Identifier: Apache-2.0
"""The facade: wires the rooms of one process and owns their life cycles.

Holds `JIT`. Does not hold rules: each is in the room that keeps it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import weakref
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jitwi.audit import AuditLog
from jitwi.audit.events import IdentityChanged, PolicyLoaded, PolicyRefused
from jitwi.clock import Clock, SystemClock
from jitwi.config import default_state_dir, load_config
from jitwi.credentials import Services, make_reaper
from jitwi.credentials.bounded import describe_failure
from jitwi.errors import ConfigurationError, InvalidPolicyError, StateError
from jitwi.grants import EndCause, Registry, Runtime, Settings, TaskBlock, Watchdog, end_now, recheck, stop
from jitwi.identity import IdentityEvent, IdentityEventKind, SvidKind, WorkloadApiSource
from jitwi.journal import SqliteJournal, journal_path, this_owner
from jitwi.policy import PolicyStore
from jitwi.secret import NoCopy
from jitwi.state import SqliteEndings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import FrameType, TracebackType

    from jitwi.audit.port import Audit
    from jitwi.credentials import Issuer
    from jitwi.grants import Ending, Grant
    from jitwi.identity import IdentitySource
    from jitwi.policy import EntityProvider
    from jitwi.task import Permission

__all__ = ["JIT"]

_log = logging.getLogger("jitwi")

_CLOSE_TIMEOUT = 5.0
_REAP_SECONDS = 60.0
"""How often a process that issues from backends looks for what others, or late answers, have left there."""
_IDENTITY_AUDIENCE = "jitwi-identity"
"""Nobody else's audience: a JWT-SVID fetched for it is good for nothing but saying who we are to ourselves."""
_ENDS_ALL = {
    IdentityEventKind.WITHDRAWN: EndCause.IDENTITY_WITHDRAWN,
    IdentityEventKind.REPLACED: EndCause.IDENTITY_REPLACED,
    IdentityEventKind.EXPIRED: EndCause.IDENTITY_EXPIRED,
}


class JIT(NoCopy):
    """Just-in-time credentials for the tasks of this workload.

    Nothing is read, opened or started before the first task (or `start()`); `close()`, or leaving `with jit:`, ends
    every live task and what was started. A forked child starts anew at its first task.

    Args:
        policies: Folder with `*.cedar`, `*.cedarschema`, `entities.json`, `tasks.toml`; or a `PolicyStore`.
        issuers: Name -> issuer.
        identity: `"x509-svid"`, `"jwt-svid"`, or a source of your own (you close it).
        spiffe_id: Which SVID, where the agent serves several.
        hint: Which SVID, by the operator's hint.
        identity_audience: For `identity="jwt-svid"`: the audience of our own that it is fetched for.
        endpoint: The Workload API, `unix:///...` or `tcp://IP:port`; default: `SPIFFE_ENDPOINT_SOCKET`.
        entities: Provider of resource facts, asked with a deadline.
        state_dir: Folder for journal, audit and endings; default: `JITWI_STATE_DIR`, else
            `~/.local/state/jitwi` of the user that the process runs as.
        audit: Folder of the audit chains, or an `Audit` of your own (you close it); default: in `state_dir`.
        max_staleness: For how long new tasks may rest on an identity whose stream is lost.
        identity_timeout: How long a task waits for an identity.
        on_ending: Called with each grant and its ending.
        max_refused_uses: Refused uses after which a task is ended.
        max_pending_endings: Unfinished endings of an issuer above which it issues no more.
        issuer_timeout: How long an issuer may take for one call.
        end_timeout: How long the end of a block waits for one backend before it says `pending`.
        stop_signals: Signals that end all tasks before the process dies of them. Only those are taken whose handler
            is the default one, and only from the main thread; a handler of yours stays. It should raise (`sys.exit()`),
            so that blocks are left and the interpreter's exit ends the rest; it must not call `close()`, which waits
            for what the interrupted code may hold.
        clock: The clock.

    Raises:
        ConfigurationError: An argument is out of bounds.
    """

    def __init__(  # noqa: PLR0913 - every knob has a default
        self,
        policies: str | os.PathLike[str] | PolicyStore,
        *,
        issuers: Mapping[str, Issuer] | None = None,
        identity: str | IdentitySource = "x509-svid",
        spiffe_id: str | None = None,
        hint: str | None = None,
        identity_audience: str | None = None,
        endpoint: str | None = None,
        entities: EntityProvider | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        audit: str | os.PathLike[str] | Audit | None = None,
        max_staleness: timedelta = timedelta(seconds=60),
        identity_timeout: timedelta = timedelta(seconds=2),
        on_ending: Callable[[Grant, Ending], None] | None = None,
        max_refused_uses: int = 10,
        max_pending_endings: int = 10,
        issuer_timeout: timedelta = timedelta(seconds=10),
        end_timeout: timedelta = timedelta(seconds=5),
        stop_signals: Iterable[signal.Signals] = (signal.SIGTERM,),
        clock: Clock | None = None,
    ) -> None:
        _check_settings(
            max_staleness=max_staleness,
            identity_timeout=identity_timeout,
            issuer_timeout=issuer_timeout,
            end_timeout=end_timeout,
            max_refused_uses=max_refused_uses,
            max_pending_endings=max_pending_endings,
        )
        if isinstance(policies, PolicyStore) and entities is not None:
            msg = "`entities` has no effect on a `PolicyStore` of your own"
            raise ConfigurationError(msg, reasons=("no-effect",), remedy="give the provider to the store")
        if isinstance(identity, str):
            if identity not in {kind.value for kind in SvidKind}:
                msg = f"`{identity}` is no kind of identity"
                raise ConfigurationError(msg, remedy="`x509-svid`, `jwt-svid`, or a source of your own")
            choices = {} if identity == SvidKind.JWT.value else {"identity_audience": identity_audience}
        else:
            choices = {
                "spiffe_id": spiffe_id,
                "hint": hint,
                "identity_audience": identity_audience,
                "endpoint": endpoint,
            }
        for name, value in choices.items():
            if value is not None:
                msg = f"`{name}` has no effect on this `identity`"
                raise ConfigurationError(msg, reasons=("no-effect",), remedy="leave it out, or give it to the source")
        self._clock = SystemClock() if clock is None else clock
        self._policies = policies
        self._entities = entities
        self._issuers = dict(issuers or {})
        self._identity = identity
        self._identity_choice: dict[str, Any] = {
            "endpoint": endpoint,
            "spiffe_id": spiffe_id,
            "hint": hint,
            "max_staleness": max_staleness,
        }
        if identity == SvidKind.JWT.value:
            self._identity_choice["audience"] = identity_audience or _IDENTITY_AUDIENCE
        self._state_dir = state_dir
        self._audit = audit
        self._settings = Settings(
            identity_timeout=identity_timeout.total_seconds(),
            issuer_timeout=issuer_timeout.total_seconds(),
            end_timeout=end_timeout.total_seconds(),
            max_refused_uses=max_refused_uses,
            max_pending_endings=max_pending_endings,
            on_ending=on_ending,
        )
        self._stop_signals = tuple(stop_signals)
        for name, issuer in self._issuers.items():
            if len(self._issuers) > 1 and issuer.serves is None:
                msg = f"issuer `{name}` does not say which actions it serves"
                raise ConfigurationError(msg, remedy="with several issuers, give each `serves=[...]`")
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._is_closed = False
        _all.add(self)

    @classmethod
    def from_env(cls, **overrides: Any) -> JIT:
        """Build from the file that `JITWI_CONFIG` names; issuers are found by entry point.

        Args:
            **overrides: Arguments of `JIT` that win over the file.

        Raises:
            ConfigurationError: There is no such file, or it is wrong; names file and key.
        """
        config = load_config()
        return cls(**{**config.jit_arguments(without=overrides), **overrides})

    def task(
        self,
        name: str,
        *,
        permissions: Mapping[str, Any] | Iterable[Permission] | Callable[..., Any],
        ttl: timedelta,
        purpose: str | None = None,
        max_uses: int | None = None,
        owner: str | None = None,
        on_behalf_of: str | None = None,
        agent: str | None = None,
        raise_on_pending: bool = False,
    ) -> TaskBlock:
        """Declare a task: enter it once with `with` or `async with`, or decorate a function with it.

        Args:
            name: Name of the task class, never empty.
            permissions: A mapping action -> resource(s), or an iterable of `Permission`; for a decorator also a
                callable that gets the bound arguments and returns one of these.
            ttl: How long it may take, whole seconds from 1 s to 24 h.
            purpose: Why.
            max_uses: How many uses in all.
            owner: Who answers for this kind of task; the task class's owner wins.
            on_behalf_of: For whom, if for somebody else.
            agent: Which agent inside the process.
            raise_on_pending: Raise at the end of a good block if some credential is not proven to be over.

        Raises:
            InvalidTaskError: The declaration is out of bounds.
        """
        declaration = {
            "permissions": permissions,
            "ttl": ttl,
            "purpose": purpose,
            "max_uses": max_uses,
            "owner": owner,
            "on_behalf_of": on_behalf_of,
            "agent": agent,
        }
        return TaskBlock(self._runtime, name, declaration, raise_on_pending=raise_on_pending)

    def start(self) -> Self:
        """Start now what the first task would start: load the policies, follow the Workload API, open the audit chain.

        Raises:
            InvalidPolicyError: The policies are refused.
            ConfigurationError: Something is not usable as configured.
            StateError: It was closed.
        """
        self._runtime()
        return self

    def reload(self) -> None:
        """Load the policies anew; end the tasks that they do not allow any more.

        Raises:
            InvalidPolicyError: The new set is refused; the last good one stays.
        """
        runtime = self._runtime()
        try:
            runtime.policies.reload()
        except InvalidPolicyError as error:
            runtime.audit.record_loss(PolicyRefused(None, error.path, error.line, error.message))
            raise
        snapshot = runtime.policies.snapshot
        runtime.audit.record_loss(PolicyLoaded(None, snapshot.digest, snapshot.policy_count))
        for grant in runtime.registry.all():
            recheck(grant)

    @property
    def live_grants(self) -> tuple[Grant, ...]:
        """The grants that are live in this process."""
        running = self._running
        return () if running is None or running.runtime.pid != os.getpid() else running.runtime.registry.all()

    def close(self) -> None:
        """End every live task and stop what was started; idempotent. What was passed in is left open."""
        with self._lock:
            self._is_closed = True
            running, self._running = self._running, None
        if running is not None:
            running.close()

    def __del__(self) -> None:
        """Close what a forgotten `JIT` has started, on its own thread: a finaliser must not wait."""
        running = getattr(self, "_running", None)
        if running is not None:
            running.runtime.watchdog.call(running.close)

    def __enter__(self) -> Self:
        """Start; see `start`."""
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close; see `close`."""
        self.close()

    def __repr__(self) -> str:
        """State and counts only."""
        state = "closed" if self._is_closed else "idle" if self._running is None else "running"
        return f"<JIT {state}, {len(self._issuers)} issuer(s), {len(self.live_grants)} live grant(s)>"

    def _runtime(self) -> Runtime:
        running = self._running
        if running is not None and running.runtime.pid == os.getpid():
            return running.runtime
        with self._lock:
            if self._is_closed:
                msg = "this `JIT` is closed"
                raise StateError(msg, reasons=("closed",), remedy="make a new one")
            if self._running is None or self._running.runtime.pid != os.getpid():
                self._running = self._start()
            return self._running.runtime

    def _start(self) -> _Running:
        state_dir = default_state_dir() if self._state_dir is None else Path(self._state_dir)
        store = self._policies
        if not isinstance(store, PolicyStore):
            store = PolicyStore(store, provider=self._entities, clock=self._clock)
        store.load()
        undo: list[Callable[[], None]] = []
        try:
            audit = self._audit
            if audit is None or isinstance(audit, str | os.PathLike):
                audit = AuditLog(state_dir / "audit" if audit is None else audit, clock=self._clock)
                undo.append(audit.close)
            source = self._identity
            if isinstance(source, str):
                source = WorkloadApiSource(svid=source, clock=self._clock, **self._identity_choice)
                undo.append(source.close)
            endings = SqliteEndings(state_dir / "endings", clock=self._clock)
            undo.append(endings.close)
            journal = SqliteJournal(journal_path(state_dir), clock=self._clock)
            undo.append(journal.close)
            watchdog = Watchdog()
            runtime = Runtime(
                pid=os.getpid(),
                clock=self._clock,
                identity=source,
                policies=store,
                audit=audit,
                journal=journal,
                owner=this_owner(),
                endings=endings,
                issuers=self._issuers,
                settings=self._settings,
                registry=Registry(),
                watchdog=watchdog,
            )
            snapshot = store.snapshot
            audit.record(PolicyLoaded(None, snapshot.digest, snapshot.policy_count))
            for issuer in self._issuers.values():
                issuer.start(Services(identity=source, clock=self._clock))
            undo.append(source.subscribe(_IdentityListener(runtime)))
            source.start()
            watchdog.start(runtime)
            undo.append(lambda: watchdog.close(_CLOSE_TIMEOUT))
            if not all(issuer.is_local for issuer in self._issuers.values()):
                reaper = make_reaper(journal, self._issuers, clock=self._clock, audit=audit)
                watchdog.work(reaper.recover)
                watchdog.repeat(reaper.run_once, every=_REAP_SECONDS)
            self._take_signals()
            undo.append(_give_signals_back)
        except BaseException:
            with contextlib.ExitStack() as jobs:
                for job in undo:
                    jobs.callback(job)
            raise
        running = _Running(runtime, undo)
        _open.add(running)
        return running

    def _take_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in self._stop_signals:
                if signal.getsignal(number) is signal.SIG_DFL:
                    _taken[number] = _StopHandler(number)
                    signal.signal(number, _taken[number])

    def _forget_parent(self) -> None:
        """In a forked child: nothing of the parent's is ours, locks included."""
        self._lock = threading.Lock()
        self._running = None


def _check_settings(**settings: object) -> None:
    for name, value in settings.items():
        if name.startswith("max_") and name != "max_staleness":
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                msg = f"`{name}` is a whole number of 1 or more"
                raise ConfigurationError(msg, reasons=("setting",))
        elif not isinstance(value, timedelta) or value < timedelta(0):
            msg = f"`{name}` is a `timedelta`, not a negative one"
            raise ConfigurationError(msg, reasons=("setting",))


class _Running:
    """What runs in this process and how to stop it."""

    def __init__(self, runtime: Runtime, undo: list[Callable[[], None]]) -> None:
        self.runtime = runtime
        self._undo = undo

    def end_all(self, cause: EndCause) -> None:
        self.runtime.is_stopping = True  # first: what registers itself from here on sees it, what did before is found
        for grant in self.runtime.registry.all():
            stop(grant, cause)
        for grant in self.runtime.registry.all():
            end_now(grant, cause)

    def stop_for_good(self) -> None:
        """End all tasks of a process that is about to die, and have them on record."""
        try:
            self.end_all(EndCause.PROCESS_STOPPED)
            self.runtime.audit.close()
        except Exception as error:  # noqa: BLE001 - the others are to be ended too
            _log.error("stopping: %s", describe_failure(error))

    def close(self) -> None:
        _open.discard(self)
        if self.runtime.pid != os.getpid():
            return
        self.end_all(EndCause.PROCESS_STOPPED)
        undo, self._undo = self._undo, []
        with contextlib.ExitStack() as jobs:  # one that fails stops none of the others
            for job in undo:
                jobs.callback(job)


class _IdentityListener:
    """Ends all tasks when their identity is gone, and writes down what happened to it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, event: IdentityEvent) -> None:
        cause = _ENDS_ALL.get(event.kind)
        if cause is not None:
            for grant in self._runtime.registry.all():
                stop(grant, cause)
        identity = event.identity
        self._runtime.audit.record_loss(
            IdentityChanged(
                None,
                "" if identity is None else str(identity.spiffe_id),
                event.kind.value,
                event.reason,
                event.grpc_code,
                0 if identity is None else identity.version,
            )
        )


class _StopHandler:
    """First signal: a watchdog's thread ends all tasks of the process, then sends it again: the default's turn.

    One for the process, not for one `JIT`: whichever took the signal, all of them end. Where none runs any more (closed
    in another thread, where no handler can be given back; forgotten; this is a forked child) it is the default's too.
    """

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self._is_done = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._is_done and any(running.runtime.watchdog.call(self._end_all) for running in list(_open)):
            return
        signal.signal(self._number, signal.SIG_DFL)
        os.kill(os.getpid(), self._number)

    def _end_all(self) -> None:
        try:
            for running in list(_open):
                running.stop_for_good()
        finally:
            self._is_done = True
            os.kill(os.getpid(), self._number)


def _give_signals_back() -> None:
    if _open or threading.current_thread() is not threading.main_thread():
        return
    for number, handler in list(_taken.items()):
        if signal.getsignal(number) is handler:
            signal.signal(number, signal.SIG_DFL)
        del _taken[number]


_taken: dict[signal.Signals, _StopHandler] = {}
_all: weakref.WeakSet[JIT] = weakref.WeakSet()
_open: set[_Running] = set()
"""What runs, held until it is closed: the interpreter's exit must find it even if its `JIT` was forgotten."""


def _close_all() -> None:
    for running in list(_open):
        running.close()


def _after_fork() -> None:
    _open.clear()
    for jit in list(_all):
        jit._forget_parent()  # noqa: SLF001 - of this module


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
