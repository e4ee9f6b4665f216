# SPDX-License-Identifier: Apache-2.0
"""`SpireStack`: a local SPIRE that tests and the command line drive; every change waits for its visible effect.

The effect is looked for as a workload would see it: through every persona (and the ``spire-agent`` program itself)
that has the selectors of the entry in question.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spirestack import state
from spirestack.binaries import find_binaries
from spirestack.domain import Domain, Entry, FetchedSvid, Minted
from spirestack.errors import SpireDevError, StackStateError
from spirestack.lifecycle import PARTNER_FOLDER, StackLifecycle
from spirestack.personas import Persona, satisfies, start_persona
from spirestack.process import ProcessRef, wait_until
from spirestack.rotation import RotationMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

# SPIRE's rule with default intervals is up to 10.5 s; a busy machine gets more.
EFFECT_SECONDS = 40.0
# Each look starts a process.
FETCH_POLL_SECONDS = 0.1


class SpireStack(RotationMixin, StackLifecycle):
    """Server, agent, OIDC provider and personas of one trust domain (and of a partner when federated)."""

    @classmethod
    def attach(cls, run_dir: Path | str) -> Self:
        """Take hold of a stack that another process started.

        Args:
            run_dir: Its directory.

        Raises:
            StackStateError: No stack of this user there.
        """
        run = Path(run_dir)
        record = state.load(run)
        stack = cls(record["trust_domain"], fast=record["fast"], oidc=record["oidc"], detached=True)
        stack._run = run
        stack._domain = Domain(run, _recorded_binaries(record), record["trust_domain"])
        if (run / PARTNER_FOLDER).is_dir():
            stack.partner = cls.attach(run / PARTNER_FOLDER)
        return stack

    # -- personas

    def add_persona(
        self,
        name: str,
        *,
        uid: int | None = None,
        gid: int | None = None,
        groups: Sequence[int] = (),
        copy: bool = True,
    ) -> Persona:
        """Start a relay that the agent takes for a workload of its own.

        Args:
            name: Up to 20 lowercase letters, digits and dashes.
            uid: Run as this user (root only).
            gid: Run as this group (root only).
            groups: Supplementary groups (root only).
            copy: Run from an interpreter copied to a path of its own; needs no root.

        Returns:
            The persona; `socket` is its endpoint, `selectors` go on its entries.
        """
        persona = start_persona(self.run_dir, name, uid=uid, gid=gid, groups=tuple(groups), copy=copy)
        with state.changing(self.run_dir) as record:
            record["personas"][name] = persona.to_json()
        return persona

    def personas(self) -> dict[str, Persona]:
        """All personas by name."""
        recorded = state.load(self.run_dir)["personas"]
        return {name: Persona.from_json(name, self.run_dir, value) for name, value in recorded.items()}

    def persona(self, name: str) -> Persona:
        """One persona.

        Raises:
            StackStateError: None of that name.
        """
        found = self.personas().get(name)
        if found is None:
            raise StackStateError(f"there is no persona `{name}`")
        return found

    # -- entries

    def spiffe_id(self, path_or_id: str) -> str:
        """``/worker`` becomes ``spiffe://TD/worker``; an ID stays as it is."""
        return path_or_id if path_or_id.startswith("spiffe://") else f"spiffe://{self.trust_domain}{path_or_id}"

    def add_entry(  # noqa: PLR0913 - the flags of `entry create`, keyword-only
        self,
        spiffe_id: str,
        selectors: Sequence[str] | Persona,
        *,
        entry_id: str | None = None,
        x509_ttl: int | None = None,
        jwt_ttl: int | None = None,
        hint: str = "",
        include_jti: bool = False,
        dns: Sequence[str] = (),
        federates_with: Sequence[str] = (),
        wait: bool = True,
        timeout: float = EFFECT_SECONDS,
    ) -> str:
        """Register a workload and wait until it is served.

        Args:
            spiffe_id: ID, or its path (``/worker``).
            selectors: ``type:value`` each, all of which must match; or the persona meant.
            entry_id: Id of the entry; the server chooses when not given.
            x509_ttl: Seconds; the server's default when not given.
            jwt_ttl: Seconds; the server's default when not given.
            hint: Hint for choosing among several SVIDs.
            include_jti: Put a ``jti`` into JWT-SVIDs.
            dns: DNS names; the first also becomes the Common Name.
            federates_with: Trust domains whose bundles the workload gets.
            wait: Wait until every persona with these selectors is served (`observers` tells whether there is one).
            timeout: Seconds to wait.

        Returns:
            The entry id.

        Raises:
            SpireDevError: SPIRE refused it.
            WaitTimeoutError: Created, but not seen in time.
        """
        full, wanted = self.spiffe_id(spiffe_id), _selectors(selectors)
        words = ["-spiffeID", full, *_repeat("-selector", wanted), *_repeat("-dns", dns)]
        foreign = [name if name.startswith("spiffe://") else f"spiffe://{name}" for name in federates_with]
        words += _repeat("-federatesWith", foreign)
        words += ["-entryID", entry_id] if entry_id else []
        words += ["-x509SVIDTTL", str(x509_ttl)] if x509_ttl else []
        words += ["-jwtSVIDTTL", str(jwt_ttl)] if jwt_ttl else []
        words += ["-hint", hint] if hint else []
        words += ["-jwtSVIDIncludeJTI"] if include_jti else []
        created = self._server_is_ours().create_entry(words)
        if wait:
            self.await_entry(created, timeout=timeout)
        return created

    def await_entry(self, entry_id: str, *, timeout: float = EFFECT_SECONDS) -> None:
        """Wait until every persona with the selectors of an entry is served by it (seconds each)."""
        entry = self.entry(entry_id)
        self._await_each(
            entry.selectors,
            lambda svids: _has(svids, entry.spiffe_id, entry.hint),
            f"the new identity `{entry.spiffe_id}`",
            timeout=timeout,
        )

    def entries(self) -> list[Entry]:
        """All entries of the server."""
        return self.domain.entries()

    def entry(self, entry_id: str) -> Entry:
        """One entry.

        Raises:
            SpireDevError: None of that id.
        """
        for entry in self.entries():
            if entry.id == entry_id:
                return entry
        raise SpireDevError(f"there is no entry `{entry_id}`")

    def delete_entry(self, entry_id: str, *, wait: bool = True, timeout: float = EFFECT_SECONDS) -> None:
        """Delete an entry and wait until no persona is served by it any more."""
        gone = self.entry(entry_id)
        self._server_is_ours().delete_entry(entry_id)
        if wait:
            self._await_withdrawn([gone], timeout=timeout)

    def withdraw(self, spiffe_id: str, *, timeout: float = EFFECT_SECONDS) -> int:
        """Delete every entry of a SPIFFE ID and wait until nobody is served it any more.

        Returns:
            Number of entries deleted.

        Raises:
            SpireDevError: No entry has that ID.
        """
        full = self.spiffe_id(spiffe_id)
        victims = [entry for entry in self.entries() if entry.spiffe_id == full]
        if not victims:
            raise SpireDevError(f"no entry has the SPIFFE ID `{full}`")
        domain = self._server_is_ours()
        for entry in victims:
            domain.delete_entry(entry.id)
        self._await_withdrawn(victims, timeout=timeout)
        return len(victims)

    def touch_entry(self, entry_id: str, *, wait: bool = True, timeout: float = EFFECT_SECONDS) -> None:
        """Write an entry again as it is: its X509-SVID is signed anew with a new key."""
        entry = self.entry(entry_id)
        before = {socket: _serials(self.domain.fetch(socket), entry) for socket in self._probes(entry.selectors)}
        self._server_is_ours().update_entry(_update_words(entry))
        for socket, serials in before.items() if wait else ():
            fetch = partial(self.domain.fetch, socket)
            what = f"a new SVID of `{entry.spiffe_id}`"
            is_new = partial(_has_new_serial, entry, serials)
            wait_until(partial(_look, fetch, is_new), what, timeout=timeout, poll=FETCH_POLL_SECONDS)

    # -- minting

    def mint_x509(self, spiffe_id: str, *, ttl: int = 60, dns: Sequence[str] = ()) -> Minted:
        """An X.509-SVID signed by the server without entry or agent.

        Args:
            spiffe_id: ID, or its path.
            ttl: Seconds, any.
            dns: DNS names.
        """
        return self._server_is_ours().mint_x509(self.spiffe_id(spiffe_id), ttl, dns)

    def mint_jwt(self, spiffe_id: str, audience: str | Sequence[str], *, ttl: int = 60) -> str:
        """A JWT-SVID signed by the server without entry or agent.

        Args:
            spiffe_id: ID, or its path.
            audience: One or several.
            ttl: Seconds, any.
        """
        audiences = [audience] if isinstance(audience, str) else list(audience)
        return self._server_is_ours().mint_jwt(self.spiffe_id(spiffe_id), audiences, ttl)

    # -- node faults by the names the tests use

    def pause_agent(self) -> None:
        """Halt the agent: calls hang."""
        self.pause("agent")

    def resume_agent(self) -> None:
        """Let the agent run again."""
        self.resume("agent")

    def kill_agent(self) -> None:
        """Kill the agent; `start_agent` brings it back."""
        self.kill("agent")

    # -- looking

    def fetch(self, persona: Persona | None = None) -> list[FetchedSvid]:
        """X.509-SVIDs a persona is served now (the ``spire-agent`` program itself without one); empty when refused."""
        folder = self.run_dir / "w" if persona is None else persona.folder
        return self.domain.fetch(folder / "api.sock")

    def environment(self, persona: str | None = None) -> dict[str, str]:
        """Variables for a shell: endpoint (of a persona, or of the agent), run directory, issuer."""
        values = {"SPIFFE_ENDPOINT_SOCKET": self.persona(persona).socket if persona else self.socket}
        values[state.RUN_VARIABLE] = str(self.run_dir)
        if state.load(self.run_dir)["oidc"]:
            values["JITWI_SPIRE_OIDC"] = self.oidc_issuer
        return values

    def status(self) -> dict[str, Any]:
        """What runs, where, and who is served which identity."""
        record = state.load(self.run_dir)
        processes = {name: _condition(ProcessRef.from_json(item)) for name, item in record["processes"].items()}
        people = self.personas()
        for name, persona in people.items():
            processes[f"persona {name}"] = _condition(persona.process)
        served = processes.get("agent") == "running"
        identities = {
            name: sorted({svid.spiffe_id for svid in self.fetch(persona)}) if served else []
            for name, persona in people.items()
        }
        described = {key: record[key] for key in ("run_dir", "trust_domain", "spire", "bin_dir", "fast", "ports")}
        return {**described, "socket": self.socket, "processes": processes, "identities": identities}

    def observers(self, selectors: Sequence[str]) -> int:
        """How many callers here the agent would serve by these selectors; with none, no effect can be seen."""
        return len(self._probes(selectors))

    # -- waiting as a workload

    def _server_is_ours(self) -> Domain:
        if not self.process("server").is_running():
            raise StackStateError("the `server` does not run", remedy="`start server` brings it back")
        return self.domain

    def _probes(self, selectors: Sequence[str]) -> list[Path]:
        """Sockets through which the agent would serve an entry with these selectors."""
        wanted = list(selectors)
        own = satisfies(
            wanted,
            uid=os.geteuid(),
            gid=os.getegid(),
            groups=tuple(os.getgroups()),
            executable=self.domain.binaries.agent.resolve(),
        )
        found = [self.run_dir / "w" / "api.sock"] if own else []
        found += [
            person.folder / "api.sock"
            for person in self.personas().values()
            if person.satisfies(wanted) and person.is_open()
        ]
        return found

    def _await_each(
        self, selectors: Sequence[str], is_seen: Callable[[list[FetchedSvid]], bool], what: str, *, timeout: float
    ) -> None:
        for socket in self._probes(selectors):
            fetch = partial(self.domain.fetch, socket)
            wait_until(partial(_look, fetch, is_seen), what, timeout=timeout, poll=FETCH_POLL_SECONDS)

    def _await_withdrawn(self, victims: list[Entry], *, timeout: float) -> None:
        remaining = {(entry.spiffe_id, entry.hint) for entry in self.entries()}
        for entry in victims:
            if (entry.spiffe_id, entry.hint) in remaining:
                continue
            is_gone = partial(_has_not, entry)
            self._await_each(entry.selectors, is_gone, f"the end of `{entry.spiffe_id}`", timeout=timeout)


def _recorded_binaries(record: dict[str, Any]) -> Any:
    return find_binaries(need_oidc=False, folder=Path(record["bin_dir"]))


def _look(fetch: Callable[[], list[FetchedSvid]], is_seen: Callable[[list[FetchedSvid]], bool]) -> bool:
    return is_seen(fetch())


def _selectors(given: Sequence[str] | Persona) -> tuple[str, ...]:
    if isinstance(given, Persona):
        return given.selectors
    if isinstance(given, str) or not given:
        raise SpireDevError("selectors are a non-empty list of `type:value`")
    return tuple(given)


def _repeat(flag: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def _has(svids: list[FetchedSvid], spiffe_id: str, hint: str) -> bool:
    return any(svid.spiffe_id == spiffe_id and svid.hint == hint for svid in svids)


def _has_not(entry: Entry, svids: list[FetchedSvid]) -> bool:
    return not _has(svids, entry.spiffe_id, entry.hint)


def _serials(svids: list[FetchedSvid], entry: Entry) -> set[int]:
    return {svid.serial for svid in svids if svid.spiffe_id == entry.spiffe_id and svid.hint == entry.hint}


def _has_new_serial(entry: Entry, before: set[int], svids: list[FetchedSvid]) -> bool:
    return bool(_serials(svids, entry) - before)


def _condition(reference: ProcessRef) -> str:
    if not reference.is_running():
        return "gone"
    return "paused" if reference.is_stopped() else "running"


def _update_words(entry: Entry) -> list[str]:
    """The whole entry as flags: what is left out of an update is lost."""
    raw = entry.raw
    words = ["-entryID", entry.id, "-parentID", entry.parent_id, "-spiffeID", entry.spiffe_id]
    words += _repeat("-selector", entry.selectors) + _repeat("-dns", raw.get("dns_names") or [])
    words += _repeat("-federatesWith", [f"spiffe://{name}" for name in raw.get("federates_with") or []])
    numbers = {"-x509SVIDTTL": "x509_svid_ttl", "-jwtSVIDTTL": "jwt_svid_ttl", "-entryExpiry": "expires_at"}
    for flag, key in numbers.items():
        words += [flag, str(raw[key])] if int(raw.get(key) or 0) else []
    words += ["-hint", entry.hint] if entry.hint else []
    switches = {"-admin": "admin", "-downstream": "downstream", "-storeSVID": "store_svid"}
    words += [flag for flag, key in switches.items() if raw.get(key)]
    extra = raw.get("additional_attributes") or {}
    words += ["-jwtSVIDIncludeJTI"] if extra.get("jwt_svid_include_jti") else []
    words += ["-disableX509SVIDPrefetch"] if extra.get("disable_x509_svid_prefetch") else []
    return words
