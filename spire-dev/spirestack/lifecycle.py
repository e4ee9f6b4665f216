# SPDX-License-Identifier: Apache-2.0
"""Bringing a stack up, halting and ending its parts, and taking it down.

Owns processes, ports and the run directory. Entries, personas' identities and rotation are the business of
``spirestack.stack``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spirestack import config, state
from spirestack.binaries import Binaries, find_binaries
from spirestack.domain import Domain
from spirestack.errors import PortTakenError, SpireDevError, StackStateError, WaitTimeoutError
from spirestack.process import ProcessRef, spawn, tail, wait_until

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

START_TRIES = 4
START_SECONDS = 30.0
PARTNER_FOLDER = "f"
_TAKEN = "address already in use"
_PARTS = ("server", "agent", "oidc")


class StackLifecycle:
    """A stack as a set of processes in one run directory."""

    def __init__(
        self,
        trust_domain: str = "example.test",
        *,
        fast: bool = False,
        federated: bool = False,
        oidc: bool = True,
        run_dir: Path | str | None = None,
        partner_domain: str = "partner.test",
        detached: bool = False,
        log_level: str = "WARN",
    ) -> None:
        """Describe a stack; nothing is started or written.

        Args:
            trust_domain: Name without scheme.
            fast: 500 ms synchronisation, X.509 TTL 60 s, JWT TTL 10 s; SPIRE's defaults otherwise.
            federated: Start a second domain and exchange the bundles.
            oidc: Start the OIDC discovery provider.
            run_dir: New short directory; one under /tmp when not given.
            partner_domain: Name of the second domain.
            detached: Whether the stack outlives this process. If not, it is ended even when this process is killed.
            log_level: Of SPIRE's programs.

        Raises:
            SpireDevError: A name is not a trust domain.
        """
        self.settings = config.Settings(trust_domain, fast=fast, log_level=log_level)
        self._partner_settings = config.Settings(partner_domain, fast=fast, log_level=log_level)
        if federated and partner_domain == trust_domain:
            raise SpireDevError(f"`{trust_domain}` cannot federate with itself")
        self._federated, self._oidc, self._detached = federated, oidc, detached
        self._wanted = None if run_dir is None else Path(run_dir)
        self._run: Path | None = None
        self._domain: Domain | None = None
        self.partner: Self | None = None

    # -- what it is

    @property
    def run_dir(self) -> Path:
        """Directory of the stack.

        Raises:
            StackStateError: Not up.
        """
        if self._run is None:
            raise StackStateError("the stack is not up", remedy="call `up` first")
        return self._run

    @property
    def domain(self) -> Domain:
        """Command line access to server and agent."""
        if self._domain is None:
            raise StackStateError("the stack is not up", remedy="call `up` first")
        return self._domain

    @property
    def trust_domain(self) -> str:
        """Name without scheme."""
        return self.settings.trust_domain

    @property
    def socket(self) -> str:
        """The agent's Workload API, as ``SPIFFE_ENDPOINT_SOCKET`` wants it."""
        return f"unix://{self.run_dir}/w/api.sock"

    @property
    def oidc_issuer(self) -> str:
        """URL of the discovery provider, which is also the ``iss`` of the JWT-SVIDs.

        Raises:
            StackStateError: Started without one.
        """
        port = state.load(self.run_dir)["ports"].get("oidc")
        if port is None:
            raise StackStateError("the stack has no OIDC provider")
        return f"http://127.0.0.1:{port}"

    def process(self, name: str) -> ProcessRef:
        """Recorded process of a part: server, agent, oidc.

        Raises:
            StackStateError: Never started.
        """
        recorded = state.load(self.run_dir)["processes"].get(name)
        if recorded is None:
            raise StackStateError(f"the stack has no `{name}`")
        return ProcessRef.from_json(recorded)

    # -- up

    def up(self) -> Self:
        """Start everything and wait until it is healthy.

        Returns:
            This stack.

        Raises:
            BinariesError: No usable binaries.
            SpireDevError: A part did not start; its log is kept and named.
            StackStateError: Up already.
        """
        if self._run is not None:
            raise StackStateError("the stack is up already")
        binaries = find_binaries(need_oidc=self._oidc)
        for left in reversed(range(START_TRIES)):
            try:
                self._start(binaries)
            except PortTakenError:
                self.down()
                if not left:
                    raise
            except BaseException as exc:
                kept = self.down(keep_logs=True)
                exc.add_note(f"logs are kept in {kept}")
                raise
            else:
                break
        return self

    def _start(self, binaries: Binaries) -> None:
        run = self._run = config.make_run_dir(self._wanted)
        domain = self._domain = Domain(run, binaries, self.trust_domain)
        ports = {"server": config.free_port(), "oidc": config.free_port() if self._oidc else None}
        described = {"trust_domain": self.trust_domain, "fast": self.settings.fast, "federated": self._federated}
        folder = {"bin_dir": str(binaries.server.parent), "spire": binaries.version, "oidc": self._oidc}
        empty: dict[str, Any] = {"ports": ports, "processes": {}, "personas": {}}
        state.create(run, {**described, **folder, **empty})
        if not self._detached:
            self._start_guard()
        config.make_node_credentials(run)
        for name in ("server", "agent", "oidc") if self._oidc else ("server", "agent"):
            config.render(name, run, self.settings, server_port=ports["server"] or 0, oidc_port=ports["oidc"])
        domain.validate()
        self.start_server()
        config.write_private(run / "bootstrap.crt", domain.bundle().encode())
        self._start_agent_process()
        if self._oidc:
            self._start_oidc()
        if self._federated:
            self._start_partner()
        if self._detached and run.name != PARTNER_FOLDER:
            state.remember(run)

    def _start_guard(self) -> None:
        owner = ProcessRef.of(os.getpid())
        script = config.HOME / "spiredev.py"
        command = [sys.executable, str(script), "guard", "--run-dir", str(self.run_dir)]
        command += ["--owner", f"{owner.pid}:{owner.started}"]
        self._spawn("guard", command)

    def _start_partner(self: Self) -> None:
        partner = type(self)(
            self._partner_settings.trust_domain,
            fast=self.settings.fast,
            oidc=False,
            run_dir=self.run_dir / PARTNER_FOLDER,
            # Its end is part of ours.
            detached=True,
            log_level=self.settings.log_level,
        )
        # Known before it is up: a start that fails half way is taken down with us.
        self.partner = partner
        partner.up()
        self.exchange_bundles()

    def exchange_bundles(self) -> None:
        """Give both domains the other's bundle as it is now (again after each rotation)."""
        if self.partner is not None:
            here, there = self.domain, self.partner.domain
            here.set_bundle(there.trust_domain, there.bundle("spiffe"))
            there.set_bundle(here.trust_domain, here.bundle("spiffe"))

    def _spawn(self, name: str, command: list[str]) -> ProcessRef:
        run = self.run_dir
        with state.changing(run) as record:
            reference = spawn(command, output=run / "log" / f"{name}.out", cwd=run)
            record["processes"][name] = reference.to_json()
        return reference

    def _launch(self, name: str, program: Path, words: list[str]) -> ProcessRef:
        recorded = state.load(self.run_dir)["processes"].get(name)
        if recorded is not None and ProcessRef.from_json(recorded).is_running():
            raise StackStateError(f"the `{name}` runs already")
        return self._spawn(name, [str(program), *words, "-config", str(self.run_dir / f"{name}.conf")])

    def _await_part(self, name: str, reference: ProcessRef, is_ready: Any) -> None:
        def look() -> bool:
            if not reference.is_running():
                said = self.log_tail(name)
                kind = PortTakenError if _TAKEN in said else SpireDevError
                raise kind(f"the `{name}` ended while starting: {said}")
            return bool(is_ready())

        wait_until(look, f"a healthy `{name}`", timeout=START_SECONDS)

    def start_server(self) -> None:
        """Start the server (again) and wait until it is healthy."""
        reference = self._launch("server", self.domain.binaries.server, ["run"])
        self._await_part("server", reference, self.domain.is_server_healthy)

    def start_agent(self) -> None:
        """Start the agent (again) and wait until it is healthy; a ban is lifted first."""
        if self.domain.agent_record().get("banned"):
            self.domain.server("agent", "evict", "-spiffeID", self.domain.agent_id)
        self._start_agent_process()

    def _start_agent_process(self) -> None:
        reference = self._launch("agent", self.domain.binaries.agent, ["run"])
        self._await_part("agent", reference, self.domain.is_agent_healthy)

    def _start_oidc(self) -> None:
        program = self.domain.binaries.oidc
        if program is None:
            raise StackStateError("there is no OIDC provider binary")
        reference = self._launch("oidc", program, [])
        self._await_part("oidc", reference, self._serves_our_keys)

    def _serves_our_keys(self) -> bool:
        port = state.load(self.run_dir)["ports"]["oidc"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/keys")
            answer = connection.getresponse()
            served = json.loads(answer.read()) if answer.status == http.HTTPStatus.OK else {}
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        # Whoever listens there must know our server's keys: a foreign listener on that port is not our provider.
        document = json.loads(self.domain.bundle("spiffe"))
        ours = {key["kid"] for key in document["keys"] if key.get("use") == "jwt-svid"}
        return bool(ours) and ours <= {key.get("kid") for key in served.get("keys", [])}

    # -- faults of the node

    def pause(self, name: str = "agent") -> None:
        """Halt a part (SIGSTOP): it keeps its sockets and answers nothing."""
        reference = self._running(name)
        reference.send(signal.SIGSTOP)
        wait_until(reference.is_stopped, f"halted `{name}`", timeout=5)

    def resume(self, name: str = "agent") -> None:
        """Let a halted part run again (SIGCONT)."""
        reference = self._running(name)
        reference.send(signal.SIGCONT)
        wait_until(lambda: not reference.is_stopped(), f"running `{name}`", timeout=5)

    def kill(self, name: str = "agent") -> None:
        """End a part without asking (SIGKILL); `start_agent` and `start_server` bring it back."""
        self._running(name).kill()

    def _running(self, name: str) -> ProcessRef:
        reference = self.process(name)
        if not reference.is_running():
            raise StackStateError(f"the `{name}` does not run")
        return reference

    # -- looking

    def log_tail(self, name: str, lines: int = 12) -> str:
        """Last lines of a part's log and of its output."""
        folder = self.run_dir / "log"
        texts = [tail(folder / f"{name}.{kind}", lines) for kind in ("log", "out")]
        return "\n".join(text for text in texts if text)

    def log_names(self) -> list[str]:
        """Parts that wrote a log."""
        return sorted({path.stem for path in (self.run_dir / "log").iterdir()})

    def is_running(self) -> bool:
        """Whether server and agent run."""
        if self._run is None:
            return False
        with contextlib.suppress(StackStateError):
            return self.process("server").is_running() and self.process("agent").is_running()
        return False

    # -- down

    def down(self, *, keep_logs: bool = False) -> Path | None:
        """End our processes and remove the run directory. Harmless when nothing is up.

        Args:
            keep_logs: Leave RUN/log (nothing else).

        Returns:
            Folder of the kept logs, if any.

        Raises:
            WaitTimeoutError: A process survived SIGKILL; the directory stays.
            StackStateError: The state file is not as we wrote it; nothing is ended or removed.
        """
        run, self._run, self._domain = self._run, None, None
        self.partner = None
        if run is None or not run.exists():
            return None
        # The state of a start that failed before it wrote one is not odd, anything else unreadable is.
        for folder in (run, run / PARTNER_FOLDER):
            if (folder / state.FILE_NAME).exists():
                _end_processes(folder)
        state.forget(run)
        return _remove(run, keep_logs=keep_logs)

    def __enter__(self) -> Self:
        """Bring it up."""
        return self.up()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Take it down; the logs stay when the body failed."""
        kept = self.down(keep_logs=exc is not None)
        if exc is not None and kept is not None:
            exc.add_note(f"logs of the SPIRE stack are kept in {kept}")


def _end_processes(run: Path) -> None:
    record = state.load(run)
    recorded = record["processes"]
    everything = [ProcessRef.from_json(item["process"]) for item in record["personas"].values()]
    # The guard first: it would take the stack down a second time. Then who uses before who serves.
    everything += [ProcessRef.from_json(recorded[name]) for name in ("guard", *reversed(_PARTS)) if name in recorded]
    ours = [reference for reference in everything if reference.pid != os.getpid()]
    for reference in ours:
        reference.send(signal.SIGTERM)
        reference.send(signal.SIGCONT)
    deadline = time.monotonic() + 5
    for reference in ours:
        with contextlib.suppress(WaitTimeoutError):
            reference.wait_gone(timeout=max(0.0, deadline - time.monotonic()))
            continue
        reference.kill()


def _remove(run: Path, *, keep_logs: bool) -> Path | None:
    if not keep_logs:
        shutil.rmtree(run)
        return None
    for item in run.iterdir():
        if item.name == PARTNER_FOLDER:
            (item / "log").rename(run / "log" / "partner")
        if item.name != "log":
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    return run / "log"
