# SPDX-License-Identifier: Apache-2.0
"""Run by `test_fork.py` in a process of its own: forks in one way with a live source and reports what the child saw.

Usage: fork_child.py SOCKET WAY. Prints one JSON object. Exit code 0 if parent and child could say so in time.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from jitwi.errors import IdentityError, StateError  # noqa: E402 - after the path
from jitwi.identity import WorkloadApiSource  # noqa: E402

SOURCE: WorkloadApiSource | None = None
KEPT: dict[str, Any] = {}


def attempt(call: Any) -> str:
    """Name what came of a call."""
    try:
        found = call()
    except (StateError, IdentityError) as exc:
        return f"{type(exc).__name__}:{','.join(exc.reasons)}"
    return "None" if found is None else "value"


def look() -> dict[str, Any]:
    """Use everything that was inherited; in the child nothing of it may work."""
    source, identity = SOURCE, KEPT["identity"]
    start = time.monotonic()
    seen = {
        "identity": attempt(lambda: source.identity(timeout=5)),
        "peek": attempt(source.peek),
        "latest": attempt(source.latest),
        "jwt": attempt(lambda: source.jwt_svid("https://a", timeout=5)),
        "sign": attempt(lambda: identity.key.sign(b"x")),
        "state": source.state.value,
        "repr": repr(source)[:6],
    }
    seen["seconds"] = time.monotonic() - start
    return seen


def restart() -> dict[str, Any]:
    """Start again in the child."""
    source = SOURCE
    start = time.monotonic()
    began = attempt(source.start)
    seen = {"start": began, "again": attempt(lambda: source.identity(timeout=10))}
    if seen["again"] == "value":
        seen["sign"] = attempt(lambda: source.identity(timeout=1).key.sign(b"x"))
    seen["restart_seconds"] = time.monotonic() - start
    source.close()
    return seen


def in_child(report: Any) -> None:
    """What the child does: look, start again, report."""
    report(look() | {"restarted": restart()})


def by_pool(_: int) -> dict[str, Any]:
    """Look, as a worker of a pool."""
    return look()


def use_after() -> str:
    """The parent goes on as before."""
    return attempt(lambda: SOURCE.identity(timeout=5).key.sign(b"x"))


def forked(fork: Any) -> dict[str, Any]:
    """Fork by a function that returns a pid, read the child's report from a pipe."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(reader)
        in_child(lambda seen: os.write(writer, json.dumps(seen).encode()))
        os.close(writer)
        sys.exit(0)  # with finalisers: nothing inherited may hang them
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text or "{}") | {"exit": os.waitstatus_to_exitcode(status)}


def by_libc() -> int:
    """Fork without Python's hooks, the interpreter's lock held and, for that moment, asked for by no other thread.

    In the child nobody would ever take it over: the interpreter itself would wait for that, before any code of ours.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    time.sleep(0.05)
    try:
        return ctypes.PyDLL(None).fork()
    finally:
        sys.setswitchinterval(interval)


def libc_child() -> dict[str, Any]:
    """In a child of libc's fork only look: nothing of Python was prepared for it."""
    reader, writer = os.pipe()
    if by_libc() == 0:
        seen = look() | {"start": attempt(SOURCE.start)}
        os.write(writer, json.dumps(seen).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return json.loads(pipe.read())


def spawned(socket: str, queue: Any) -> None:
    """A spawned child makes a source of its own."""
    source = WorkloadApiSource(socket)
    source.start()
    queue.put({"again": attempt(lambda: source.identity(timeout=20))})
    source.close()


def process(method: str, socket: str) -> dict[str, Any]:
    """Run a child by `multiprocessing`."""
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    target, args = (in_child, (queue.put,)) if method == "fork" else (spawned, (socket, queue))
    child = context.Process(target=target, args=args)
    child.start()
    seen = queue.get(timeout=40)
    child.join(20)
    return seen | {"exit": child.exitcode}


def main() -> None:
    """Fork in the way that was asked for."""
    global SOURCE  # noqa: PLW0603 - inherited by the child
    socket, way = sys.argv[1:]
    SOURCE = WorkloadApiSource(socket)
    SOURCE.start()
    KEPT["identity"] = SOURCE.identity(timeout=20)
    SOURCE.jwt_svid("https://a", timeout=20)
    if way == "os.fork":
        seen = forked(os.fork)
    elif way == "libc":
        seen = libc_child()
    elif way == "pool":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            seen = pool.map(by_pool, range(2))[0]
    else:
        seen = process(way, socket)
    sys.stdout.write(json.dumps({"child": seen, "parent": use_after()}) + "\n")
    SOURCE.close()


if __name__ == "__main__":
    main()
