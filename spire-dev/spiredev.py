# SPDX-License-Identifier: Apache-2.0
"""Control script of the local SPIRE: ``python spire-dev/spiredev.py COMMAND``.

Reads arguments, calls ``spirestack`` and prints what was seen. Also the import point for tests: put this folder on
``sys.path`` and ``from spiredev import SpireStack``. For development and tests, not for production.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if str(Path(__file__).resolve().parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from spirestack import (
    Binaries,
    BinariesError,
    Minted,
    Persona,
    SpireDevError,
    SpireStack,
    StackStateError,
    WaitTimeoutError,
    build_binaries,
    config,
    find_binaries,
    state,
)
from spirestack.process import ProcessRef, wait_for_end_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Binaries",
    "BinariesError",
    "Minted",
    "Persona",
    "SpireDevError",
    "SpireStack",
    "StackStateError",
    "WaitTimeoutError",
    "build_binaries",
    "find_binaries",
    "main",
]

DEMO = Path(__file__).resolve().parent / "entries" / "demo.json"


def _say(line: str) -> None:
    """Progress goes to standard error: standard output is for `eval` and scripts."""
    print(line, file=sys.stderr, flush=True)


def _attach(options: argparse.Namespace) -> SpireStack:
    return SpireStack.attach(state.current(options.run_dir))


def _timed(what: str, action: Callable[[], Any], *, observers: int = 1) -> Any:
    begun = time.monotonic()
    result = action()
    if observers:
        _say(f"{what}: seen after {time.monotonic() - begun:.2f} s")
    else:
        _say(f"{what}: done, but nobody here has these selectors, so the effect was not seen")
    return result


def _build(_: argparse.Namespace) -> None:
    binaries = build_binaries(say=_say)
    print(binaries.server.parent)


def load_entries(stack: SpireStack, path: Path) -> tuple[list[str], list[str]]:
    """Start the personas of a file like entries/demo.json and register its entries, without waiting for them.

    Args:
        stack: A running stack.
        path: JSON file.

    Returns:
        Names of the personas and ids of the entries, in file order.

    Raises:
        SpireDevError: File unreadable.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names = [str(name) for name in document["personas"]]
        people = {name: stack.add_persona(name) for name in names}
        created = [
            stack.add_entry(
                entry["path"],
                people[entry["persona"]],
                hint=entry.get("hint", ""),
                x509_ttl=entry.get("x509_svid_ttl"),
                jwt_ttl=entry.get("jwt_svid_ttl"),
                federates_with=[] if stack.partner is None else [stack.partner.trust_domain],
                wait=False,
            )
            for entry in document["entries"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SpireDevError(f"`{path}` cannot be used: {exc!r}", remedy="entries/demo.json shows the form") from exc
    return names, created


def _up(options: argparse.Namespace) -> None:
    stack = SpireStack(
        options.td,
        fast=options.fast,
        federated=options.federated,
        oidc=not options.no_oidc,
        run_dir=options.run_dir,
        detached=True,
    )
    begun = time.monotonic()
    stack.up()
    persona = None
    try:
        if not options.no_entries:
            members = [member for member in (stack, stack.partner) if member is not None]
            loaded = [load_entries(member, Path(options.entries)) for member in members]
            persona = next(iter(loaded[0][0]), None)
            # All entries travel to the agents at once; only then is each waited for.
            for member, (_, created) in zip(members, loaded, strict=True):
                for entry_id in created:
                    member.await_entry(entry_id)
    except BaseException:
        kept = stack.down(keep_logs=True)
        _say(f"logs are kept in {kept}")
        raise
    _say(f"SPIRE is up in {stack.run_dir} after {time.monotonic() - begun:.2f} s")
    _print_environment(stack, persona)


def _render(options: argparse.Namespace) -> None:
    """Files for compose.yaml: everything that `up` writes before it starts a process."""
    settings = config.Settings(options.td, fast=options.fast)
    run = config.make_run_dir(Path(options.run_dir) if options.run_dir else None)
    config.make_node_credentials(run)
    server_port, oidc_port = config.free_port(), config.free_port()
    for name in ("server", "agent", "oidc"):
        config.render(name, run, settings, server_port=server_port, oidc_port=oidc_port)
    print(f"export RUN={run}\nexport SPIFFE_ENDPOINT_SOCKET=unix://{run}/w/api.sock")


def _print_environment(stack: SpireStack, persona: str | None) -> None:
    for name, value in stack.environment(persona).items():
        print(f"export {name}={shlex.quote(value)}")


def _env(options: argparse.Namespace) -> None:
    stack = _attach(options)
    names = list(stack.personas())
    chosen = options.persona or (names[0] if names and not options.agent else None)
    _print_environment(stack, chosen)


def _status(options: argparse.Namespace) -> None:
    print(json.dumps(_attach(options).status(), indent=2))


def _logs(options: argparse.Namespace) -> None:
    stack = _attach(options)
    for name in [options.name] if options.name else stack.log_names():
        print(f"== {name}\n{stack.log_tail(name, options.lines)}")


def _entry_add(options: argparse.Namespace) -> None:
    stack = _attach(options)
    target: Any = stack.persona(options.persona) if options.persona else options.selector
    created = _timed(
        f"identity {stack.spiffe_id(options.spiffe_id)}",
        lambda: stack.add_entry(
            options.spiffe_id,
            target,
            entry_id=options.entry_id,
            x509_ttl=options.x509_ttl,
            jwt_ttl=options.jwt_ttl,
            hint=options.hint,
            include_jti=options.jti,
            dns=options.dns,
            federates_with=options.federates_with,
        ),
        observers=stack.observers(target.selectors if options.persona else target),
    )
    print(created)


def _entry_rm(options: argparse.Namespace) -> None:
    stack = _attach(options)
    observers = stack.observers(stack.entry(options.entry_id).selectors)
    _timed(f"entry {options.entry_id} gone", lambda: stack.delete_entry(options.entry_id), observers=observers)


def _entry_touch(options: argparse.Namespace) -> None:
    stack = _attach(options)
    observers = stack.observers(stack.entry(options.entry_id).selectors)
    _timed(f"new SVID by entry {options.entry_id}", lambda: stack.touch_entry(options.entry_id), observers=observers)


def _entry_list(options: argparse.Namespace) -> None:
    for entry in _attach(options).entries():
        hint = f" hint={entry.hint}" if entry.hint else ""
        print(f"{entry.id} {entry.spiffe_id}{hint} {' '.join(entry.selectors)}")


def _withdraw(options: argparse.Namespace) -> None:
    stack = _attach(options)
    full = stack.spiffe_id(options.spiffe_id)
    observers = sum(stack.observers(entry.selectors) for entry in stack.entries() if entry.spiffe_id == full)
    _timed(f"{full} withdrawn", lambda: stack.withdraw(full), observers=observers)


def _rotate(options: argparse.Namespace) -> None:
    stack = _attach(options)
    kinds = {"x509": stack.rotate_x509, "jwt": stack.rotate_jwt, "all": stack.rotate_all}
    print(_timed(f"rotation of {options.kind}", lambda: kinds[options.kind](keep_old=options.keep_old)))


def _node(options: argparse.Namespace) -> None:
    stack = _attach(options)
    part = getattr(options, "part", "agent")
    starts = {"agent": stack.start_agent, "server": stack.start_server}
    actions: dict[str, Callable[[], Any]] = {
        "pause": lambda: stack.pause(part),
        "resume": lambda: stack.resume(part),
        "kill": lambda: stack.kill(part),
        "start": starts[part],
        "ban": stack.ban_agent,
        "evict": stack.evict_agent,
    }
    _timed(f"{options.command} {part}", actions[options.command])


def _persona_add(options: argparse.Namespace) -> None:
    stack = _attach(options)
    copy = options.copy or (options.uid is None and options.gid is None and not options.group)
    persona = stack.add_persona(options.name, uid=options.uid, gid=options.gid, groups=options.group, copy=copy)
    _say(f"selectors: {' '.join(persona.selectors)}")
    print(persona.socket)


def _persona_fault(options: argparse.Namespace) -> None:
    persona = _attach(options).persona(options.name)
    if options.fault == "delay":
        print(persona.delay(options.seconds))
    else:
        print({"ok": persona.ok, "cut": persona.cut, "drop": persona.drop, "status": persona.fault}[options.fault]())


def _down(options: argparse.Namespace) -> None:
    kept = _timed("down", lambda: _attach(options).down(keep_logs=options.keep_logs))
    if kept is not None:
        print(kept)


def _guard(options: argparse.Namespace) -> None:
    """Wait until the owner of a stack has ended, then take down what it left."""
    pid, _, started = options.owner.partition(":")
    wait_for_end_of(ProcessRef(int(pid), int(started)))
    SpireStack.attach(options.run_dir).down()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spiredev.py", description="a local SPIRE for tests and demos")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(parent: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
        added = parent.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--run-dir", help="directory of the stack (default: the only one running)")
        return added

    command(commands, "build", _build, "build the pinned SPIRE into the cache, unless it is there")
    up = command(commands, "up", _up, "start a stack and print its environment")
    up.add_argument("--td", default="example.test", help="trust domain")
    up.add_argument("--fast", action="store_true", help="500 ms synchronisation, X.509 TTL 60 s, JWT TTL 10 s")
    up.add_argument("--federated", action="store_true", help="a second domain, `partner.test`, with exchanged bundles")
    up.add_argument("--no-oidc", action="store_true", help="no OIDC discovery provider")
    up.add_argument("--no-entries", action="store_true", help="no personas and entries")
    up.add_argument("--entries", default=str(DEMO), help="file with personas and entries")
    render = command(commands, "render", _render, "only write the configuration, for compose.yaml")
    render.add_argument("--td", default="example.test", help="trust domain")
    render.add_argument("--fast", action="store_true", help="as for `up`")
    env = command(commands, "env", _env, "print export lines")
    env.add_argument("--persona", help="whose endpoint (default: the first persona's)")
    env.add_argument("--agent", action="store_true", help="the agent's own endpoint")
    command(commands, "status", _status, "processes, ports, identities")
    logs = command(commands, "logs", _logs, "last lines of the logs")
    logs.add_argument("name", nargs="?")
    logs.add_argument("--lines", type=int, default=20)
    _add_entry_commands(commands, command)
    withdraw = command(commands, "withdraw", _withdraw, "delete every entry of a SPIFFE ID")
    withdraw.add_argument("spiffe_id", help="ID or path")
    rotate = command(commands, "rotate", _rotate, "new signing authority; taint and revoke the old")
    rotate.add_argument("kind", choices=("x509", "jwt", "all"))
    rotate.add_argument("--keep-old", action="store_true", help="do not taint and revoke the old one")
    for name, text in (("pause", "SIGSTOP"), ("resume", "SIGCONT"), ("kill", "SIGKILL"), ("start", "bring back")):
        node = command(commands, name, _node, f"{text} the agent or the server")
        node.add_argument("part", nargs="?", default="agent", choices=("agent", "server"))
    command(commands, "ban", _node, "ban the agent: it ends itself (`start agent` lifts the ban)")
    command(commands, "evict", _node, "forget the agent: it attests itself again")
    _add_persona_commands(commands, command)
    down = command(commands, "down", _down, "end the stack and remove its directory")
    down.add_argument("--keep-logs", action="store_true")
    guard = command(commands, "guard", _guard, "internal: end a stack with its owner")
    guard.add_argument("--owner", required=True, help="PID:START")
    return parser


def _add_entry_commands(commands: Any, command: Callable[..., Any]) -> None:
    entry = commands.add_parser("entry", help="add, rm, touch, list").add_subparsers(required=True, metavar="ACTION")
    add = command(entry, "add", _entry_add, "register a workload and wait until it is served")
    add.add_argument("spiffe_id", help="ID or path")
    whom = add.add_mutually_exclusive_group(required=True)
    whom.add_argument("--persona", help="its selectors")
    whom.add_argument("--selector", action="append", help="type:value, repeatable, all must match")
    add.add_argument("--entry-id")
    add.add_argument("--x509-ttl", type=int, help="seconds")
    add.add_argument("--jwt-ttl", type=int, help="seconds")
    add.add_argument("--hint", default="")
    add.add_argument("--jti", action="store_true", help="a `jti` in JWT-SVIDs")
    add.add_argument("--dns", action="append", default=[])
    add.add_argument("--federates-with", action="append", default=[], metavar="TRUST_DOMAIN")
    command(entry, "rm", _entry_rm, "delete an entry").add_argument("entry_id")
    command(entry, "touch", _entry_touch, "rotate the SVID of an entry").add_argument("entry_id")
    command(entry, "list", _entry_list, "all entries")


def _add_persona_commands(commands: Any, command: Callable[..., Any]) -> None:
    persona = commands.add_parser("persona", help="add, fault").add_subparsers(required=True, metavar="ACTION")
    add = command(persona, "add", _persona_add, "a relay with an identity of its own; prints its socket")
    add.add_argument("name")
    add.add_argument("--uid", type=int, help="as this user (root)")
    add.add_argument("--gid", type=int, help="as this group (root)")
    add.add_argument("--group", type=int, action="append", default=[], help="supplementary group (root), repeatable")
    add.add_argument("--copy", action="store_true", help="from a copied interpreter (the default without the others)")
    fault = command(persona, "fault", _persona_fault, "switch a fault of a relay")
    fault.add_argument("name")
    fault.add_argument("fault", choices=("ok", "delay", "cut", "drop", "status"))
    fault.add_argument("seconds", nargs="?", type=float, default=1.0, help="of `delay`")


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line without the program name.

    Returns:
        Exit status: 0 done, 1 refused or failed (reason on standard error).
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except SpireDevError as exc:
        notes = "".join(f"\n{note}" for note in getattr(exc, "__notes__", ()))
        _say(f"error: {exc}{notes}")
        return 1
    return 0


def _end(number: int, _: object) -> None:
    """Leave by an exception, so that a build ends its compilers and a half-started stack is taken down."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
