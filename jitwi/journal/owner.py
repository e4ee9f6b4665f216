# SPDX-License-Identifier: Apache-2.0
"""Which process opened a lease, and whether it is still there.

Holds how a process names itself, how it is looked up, and the pure rule over both. Never a pid alone: pids are used
again, so the start time of the process must match too, and the same pid in another container or after a reboot is
another process. The heartbeat is the second sign: for a process that cannot be looked up from here, and for one that is
there but does not move.
"""

from __future__ import annotations

import enum
import os
import secrets
from pathlib import Path

from jitwi.journal.record import Owner

__all__ = [
    "HEARTBEAT_SECONDS",
    "HEARTBEAT_STALE_SECONDS",
    "Sighting",
    "host_id",
    "is_alive",
    "look_up",
    "this_owner",
]

HEARTBEAT_SECONDS = 5.0
HEARTBEAT_STALE_SECONDS = 60.0

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATE_FIELD, _START_FIELD = 0, 19  # fields 3 and 22 of proc_pid_stat(5), counted behind the command name
_DEAD_STATES = frozenset({"Z", "X", "x"})


class Sighting(enum.Enum):
    """What this host sees of an owner's process."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"


def host_id() -> str:
    """Return what a pid means something in: this boot of this kernel and this pid namespace; empty if unknown."""
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    try:
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - follows the link to the namespace
    except OSError:
        return boot


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of `/proc/PID/stat` behind the command name, which may itself hold spaces and parentheses."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode("ascii", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > _START_FIELD else None


def this_owner() -> Owner:
    """Return the name of this process, with a new random token: once per `JIT`, and anew in a forked child."""
    fields = _stat_fields(os.getpid())
    started_at = int(fields[_START_FIELD]) if fields else 0
    return Owner(host=host_id(), pid=os.getpid(), started_at=started_at, token=secrets.token_hex(16))


def look_up(owner: Owner) -> Sighting:
    """Look for the owner's process on this host.

    Returns:
        PRESENT if pid and start time match and it is no zombie, ABSENT if not, UNKNOWN if it belongs to another boot,
        host or pid namespace, or if this platform has no `/proc`.
    """
    here = host_id()
    if not here or owner.host != here or owner.started_at <= 0 or owner.pid <= 0:
        return Sighting.UNKNOWN
    if _stat_fields(os.getpid()) is None:
        return Sighting.UNKNOWN
    fields = _stat_fields(owner.pid)
    if fields is None or fields[_STATE_FIELD] in _DEAD_STATES or int(fields[_START_FIELD]) != owner.started_at:
        return Sighting.ABSENT
    return Sighting.PRESENT


def is_alive(owner: Owner, heartbeat: float | None, now: float, *, sighting: Sighting | None = None) -> bool:
    """Whether a lease's owner still answers for it.

    Its process must not be known to be gone, and its heartbeat must be young. So an owner of another boot counts as
    gone as soon as its last heartbeat is old, and one that was stopped is not waited for.

    Args:
        owner: Who.
        heartbeat: Its last heartbeat, seconds since the epoch, or None if there is none.
        now: Seconds since the epoch.
        sighting: What `look_up` said; looked up if not given.
    """
    seen = look_up(owner) if sighting is None else sighting
    if seen is Sighting.ABSENT or heartbeat is None:
        return False
    return abs(now - heartbeat) <= HEARTBEAT_STALE_SECONDS
