# SPDX-License-Identifier: Apache-2.0
"""Processes we start and end, and waiting with a deadline. Linux only (``/proc``, pidfd).

A process is known by pid **and** start time. A pid alone may belong to somebody else by now, so nothing is signalled
unless both still match. Nothing here knows SPIRE.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from spirestack.errors import StackStateError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

POLL_SECONDS = 0.05
STOP_SECONDS = 5.0
_STATE_FIELD = 0  # of what follows the command name in /proc/PID/stat, whose first entry is field 3
_START_TIME_FIELD = 19  # field 22


def _stat_fields(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - no Path in a hot loop
            text = file.read()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def start_time(pid: int) -> int | None:
    """Start time of a running process in clock ticks since boot, ``None`` when it is gone or a zombie.

    Source: proc(5), ``/proc/pid/stat`` field 22.
    """
    fields = _stat_fields(pid)
    if fields is None or len(fields) <= _START_TIME_FIELD or fields[_STATE_FIELD] in {"Z", "X"}:
        return None
    return int(fields[_START_TIME_FIELD])


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """One process of ours, recognisable after the pid was given to somebody else."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef:
        """Reference to a process that runs now.

        Raises:
            StackStateError: It has ended already.
        """
        started = start_time(pid)
        if started is None:
            raise StackStateError(f"process `{pid}` ended right after its start")
        return cls(pid, started)

    @classmethod
    def from_json(cls, value: Any) -> ProcessRef:
        """Read what `to_json` wrote."""
        return cls(int(value["pid"]), int(value["started"]))

    def to_json(self) -> dict[str, int]:
        """Both numbers, for state.json."""
        return {"pid": self.pid, "started": self.started}

    def is_running(self) -> bool:
        """Whether the very same process still runs."""
        self._reap()
        return start_time(self.pid) == self.started

    def _reap(self) -> None:
        fields = _stat_fields(self.pid)
        if fields is not None and fields[_STATE_FIELD] == "Z" and int(fields[_START_TIME_FIELD]) == self.started:
            with contextlib.suppress(OSError):
                os.waitpid(self.pid, os.WNOHANG)

    def is_stopped(self) -> bool:
        """Whether it is halted by SIGSTOP."""
        fields = _stat_fields(self.pid)
        return self.is_running() and fields is not None and fields[_STATE_FIELD] in {"T", "t"}

    def send(self, number: signal.Signals) -> bool:
        """Signal the process if, and only if, it is still the one we started.

        Returns:
            Whether the signal was sent.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except (OSError, ValueError):
            return False
        try:
            # The pidfd pins whoever has the pid now; the start time tells whether that is ours.
            if start_time(self.pid) != self.started:
                return False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
                return True
            return False
        finally:
            os.close(descriptor)

    def stop(self, *, timeout: float = STOP_SECONDS) -> None:
        """End the process: continue it if halted, ask it, then kill it.

        Args:
            timeout: Seconds it may take after being asked, and again after being killed.

        Raises:
            WaitTimeoutError: It survived even SIGKILL.
        """
        if not self.send(signal.SIGTERM):
            return
        self.send(signal.SIGCONT)
        with contextlib.suppress(WaitTimeoutError):
            self.wait_gone(timeout=timeout)
            return
        self.kill(timeout=timeout)

    def kill(self, *, timeout: float = STOP_SECONDS) -> None:
        """SIGKILL, then wait until it is gone (seconds)."""
        self.send(signal.SIGKILL)
        self.wait_gone(timeout=timeout)

    def wait_gone(self, *, timeout: float) -> None:
        """Wait until the process has ended (seconds)."""
        wait_until(lambda: not self.is_running(), f"end of process `{self.pid}`", timeout=timeout)


def spawn(
    command: Sequence[str], *, output: Path, cwd: Path, env: Mapping[str, str] | None = None, umask: int = 0o027
) -> ProcessRef:
    """Start a long-running process in a session and process group of its own.

    Args:
        command: Program and arguments.
        output: File that standard output and error are appended to.
        cwd: Working directory.
        env: Whole environment; only PATH when not given, so no ``SPIFFE_*`` of the caller leaks in.
        umask: File mode mask.

    Returns:
        The reference to record.

    Raises:
        StackStateError: It could not be started or ended at once.
    """
    environment = {"PATH": os.environ.get("PATH", os.defpath)} if env is None else dict(env)
    with output.open("ab") as file:
        output.chmod(0o600)
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=environment,
                start_new_session=True,
                umask=umask,
            )
        except OSError as exc:
            raise StackStateError(f"cannot start `{command[0]}`: {exc.strerror}") from exc
    started = start_time(child.pid)
    # We reap by pid, also from other objects: tell Popen that it needs not care any more.
    child.returncode = 0
    if started is None:
        with contextlib.suppress(OSError):
            os.waitpid(child.pid, os.WNOHANG)
        raise StackStateError(f"`{command[0]}` ended right after its start", remedy=f"its last words: {tail(output)}")
    return ProcessRef(child.pid, started)


def wait_for_end_of(owner: ProcessRef) -> None:
    """Block until another process has ended; returns at once when it is gone already."""
    try:
        descriptor = os.pidfd_open(owner.pid)
    except OSError:
        return
    try:
        if start_time(owner.pid) == owner.started:
            select.select([descriptor], [], [])
    finally:
        os.close(descriptor)


def wait_until(probe: Callable[[], T], what: str, *, timeout: float, poll: float = POLL_SECONDS) -> T:
    """Call `probe` until it returns something true.

    Args:
        probe: Looks for the visible effect.
        what: Named in the error.
        timeout: Seconds.
        poll: Seconds between two looks.

    Returns:
        The first true answer.

    Raises:
        WaitTimeoutError: Deadline passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(f"{what} was not seen within {timeout:g} s")
        time.sleep(poll)


def tail(path: Path, lines: int = 12) -> str:
    """Last lines of a log, empty when there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
