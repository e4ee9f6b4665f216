# SPDX-License-Identifier: Apache-2.0
"""One trust domain seen through SPIRE's own command line: entries, bundles, authorities, minting, fetching.

Each method is one or two calls of ``spire-server`` or ``spire-agent`` and changes or reads exactly that. Waiting for
effects and owning processes is the stack's work.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography import x509

from spirestack.errors import SpireDevError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spirestack.binaries import Binaries

CALL_SECONDS = 15.0
FETCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Minted:
    """An X.509-SVID signed by the server without an agent.

    Args:
        certificates: Leaf first, PEM.
        private_key: PKCS #8, PEM.
        bundle: Trust anchors of the domain, PEM.
    """

    certificates: str
    private_key: str = field(repr=False)
    bundle: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class FetchedSvid:
    """What a workload was given, without its key."""

    spiffe_id: str
    hint: str
    serial: int
    authority_id: str
    bundle_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A registration entry as the server lists it."""

    id: str
    spiffe_id: str
    parent_id: str
    selectors: tuple[str, ...]
    hint: str
    revision: int
    raw: dict[str, Any] = field(repr=False)


class Domain:
    """Command line access to one server and its agent."""

    def __init__(self, run: Path, binaries: Binaries, trust_domain: str) -> None:
        """Remember where to call; nothing is called.

        Args:
            run: Run directory.
            binaries: Checked programs.
            trust_domain: Name without scheme.
        """
        self.run = run
        self.binaries = binaries
        self.trust_domain = trust_domain
        self.agent_id = f"spiffe://{trust_domain}/spire/agent/x509pop/dev"

    # -- calls

    def server(self, *words: str, given: str | None = None) -> str:
        """Run a ``spire-server`` command against our server's admin socket."""
        command = [str(self.binaries.server), *words, "-socketPath", str(self.run / "s" / "api.sock")]
        return _call(command, self.run, given=given)

    def server_json(self, *words: str) -> Any:
        """The same with ``-output json``."""
        return json.loads(self.server(*words, "-output", "json"))

    def is_server_healthy(self) -> bool:
        """Whether the server answers its health check."""
        return _succeeds([str(self.binaries.server), "healthcheck", "-socketPath", str(self.run / "s" / "api.sock")])

    def is_agent_healthy(self) -> bool:
        """Whether the agent answers its health check."""
        return _succeeds([str(self.binaries.agent), "healthcheck", "-socketPath", str(self.run / "w" / "api.sock")])

    def validate(self) -> None:
        """Let SPIRE check keys and plugins of the rendered files.

        Raises:
            SpireDevError: With what SPIRE said.
        """
        for program, name in ((self.binaries.server, "server"), (self.binaries.agent, "agent")):
            _call([str(program), "validate", "-config", str(self.run / f"{name}.conf")], self.run)

    # -- workload side

    def fetch(self, socket: Path) -> list[FetchedSvid]:
        """X.509-SVIDs that the caller behind `socket` gets now; empty when refused or unreachable."""
        found: list[FetchedSvid] = []
        answer = self._fetch("x509", socket)
        for item in answer.get("svids", []):
            leaf = x509.load_der_x509_certificate(base64.b64decode(item["x509_svid"]))
            found.append(
                FetchedSvid(
                    spiffe_id=item["spiffe_id"],
                    hint=item.get("hint", ""),
                    serial=leaf.serial_number,
                    authority_id=_authority_id(leaf),
                    bundle_ids=_subject_key_ids(base64.b64decode(item["bundle"])),
                )
            )
        return found

    def fetch_jwt(self, socket: Path, audience: str) -> tuple[list[str], frozenset[str]]:
        """JWT-SVIDs for an audience, and the key ids of the domain's JWT bundle; empty when refused."""
        answer = self._fetch("jwt", socket, "-audience", audience)
        parts = answer if isinstance(answer, list) else [answer]
        tokens = [item["svid"] for part in parts for item in part.get("svids", [])]
        encoded = [part["bundles"][f"spiffe://{self.trust_domain}"] for part in parts if "bundles" in part]
        keys = [key["kid"] for text in encoded for key in json.loads(base64.b64decode(text))["keys"]]
        return tokens, frozenset(keys)

    def _fetch(self, kind: str, socket: Path, *words: str) -> Any:
        command = [str(self.binaries.agent), "api", "fetch", kind, "-socketPath", str(socket)]
        command += ["-timeout", f"{FETCH_SECONDS:g}s", "-output", "json", *words]
        try:
            return json.loads(_call(command, self.run))
        except SpireDevError:
            return {}

    # -- entries

    def create_entry(self, words: Sequence[str]) -> str:
        """``entry create`` with these flags; returns the entry id."""
        answer = self.server_json("entry", "create", "-parentID", self.agent_id, *words)
        result = answer["results"][0]
        if result["status"]["code"] != 0:
            raise SpireDevError(f"the entry was refused: {result['status']['message']}")
        return str(result["entry"]["id"])

    def update_entry(self, words: Sequence[str]) -> None:
        """``entry update`` with these flags (the whole entry)."""
        self.server("entry", "update", *words)

    def delete_entry(self, entry_id: str) -> None:
        """``entry delete``."""
        self.server("entry", "delete", "-entryID", entry_id)

    def entries(self) -> list[Entry]:
        """All entries."""
        found = self.server_json("entry", "show").get("entries") or []
        return [
            Entry(
                id=item["id"],
                spiffe_id=_join_id(item["spiffe_id"]),
                parent_id=_join_id(item["parent_id"]),
                selectors=tuple(f"{part['type']}:{part['value']}" for part in item["selectors"]),
                hint=item.get("hint", ""),
                revision=int(item["revision_number"]),
                raw=item,
            )
            for item in found
        ]

    # -- authorities, bundles, node

    def authorities(self, kind: str) -> dict[str, str]:
        """Authority ids by state (active, prepared, old) of ``x509`` or ``jwt``."""
        answer = self.server_json("localauthority", kind, "show")
        return {state: answer[state]["authority_id"] for state in ("active", "prepared", "old") if answer.get(state)}

    def authority(self, kind: str, action: str, authority_id: str | None = None) -> None:
        """``localauthority KIND ACTION``: prepare, activate, taint or revoke."""
        chosen = [] if authority_id is None else ["-authorityID", authority_id]
        self.server("localauthority", kind, action, *chosen)

    def bundle(self, form: str = "pem") -> str:
        """Bundle of the domain as ``pem`` or as ``spiffe`` (JWKS)."""
        return self.server("bundle", "show", "-format", form)

    def set_bundle(self, trust_domain: str, document: str) -> None:
        """Take a foreign domain's bundle (SPIFFE format)."""
        self.server("bundle", "set", "-id", f"spiffe://{trust_domain}", "-format", "spiffe", given=document)

    def agent_record(self) -> dict[str, Any]:
        """What the server knows about our agent; empty when it knows none."""
        for agent in self.server_json("agent", "list").get("agents") or []:
            if _join_id(agent["id"]) == self.agent_id:
                return dict(agent)
        return {}

    def node_state(self) -> tuple[str, frozenset[str]]:
        """Authority that signed the agent's own SVID, and the roots the agent trusts, from its data file."""
        try:
            data = json.loads((self.run / "agent" / "agent-data.json").read_text(encoding="utf-8"))
            chain = x509.load_pem_x509_certificates(b"".join(map(base64.b64decode, data["svid"])))
            roots = x509.load_pem_x509_certificates(b"".join(map(base64.b64decode, data["bundle"])))
        except (OSError, ValueError, KeyError):
            return "", frozenset()
        return _authority_id(chain[0]), frozenset(map(_subject_key_id, roots))

    # -- minting

    def mint_x509(self, spiffe_id: str, ttl_seconds: int, dns: Sequence[str]) -> Minted:
        """An X.509-SVID of any lifetime, signed by the server."""
        words = [word for name in dns for word in ("-dns", name)]
        answer = self.server_json("x509", "mint", "-spiffeID", spiffe_id, "-ttl", f"{ttl_seconds}s", *words)
        return Minted(
            certificates="".join(_pem("CERTIFICATE", der) for der in answer["x509_svid"]),
            private_key=_pem("PRIVATE KEY", answer["private_key"]),
            bundle="".join(_pem("CERTIFICATE", der) for der in answer["root_cas"]),
        )

    def mint_jwt(self, spiffe_id: str, audiences: Sequence[str], ttl_seconds: int) -> str:
        """A JWT-SVID of any lifetime, signed by the server."""
        words = [word for name in audiences for word in ("-audience", name)]
        return self.server("jwt", "mint", "-spiffeID", spiffe_id, "-ttl", f"{ttl_seconds}s", *words).strip()


def _pem(label: str, encoded_der: str) -> str:
    body = "\n".join(textwrap.wrap(encoded_der, 64))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"


def _subject_key_ids(ders: bytes) -> frozenset[str]:
    """Key ids of concatenated DER certificates (the Workload API's form of a bundle)."""
    found: set[str] = set()
    while ders:
        length = _der_length(ders)
        certificate = x509.load_der_x509_certificate(ders[:length])
        found.add(_subject_key_id(certificate))
        ders = ders[length:]
    return frozenset(found)


def _subject_key_id(certificate: x509.Certificate) -> str:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def _authority_id(certificate: x509.Certificate) -> str:
    key_id = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    return (key_id or b"").hex()


def _der_length(data: bytes) -> int:
    first, long_form = data[1], 0x80
    if first < long_form:
        return 2 + first
    size = first - long_form
    return 2 + size + int.from_bytes(data[2 : 2 + size], "big")


def _join_id(value: dict[str, str]) -> str:
    return f"spiffe://{value['trust_domain']}{value['path']}"


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath)}


def _call(command: list[str], folder: Path, *, given: str | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            input=given or "",
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
            cwd=folder,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as exc:
        raise SpireDevError(f"`{_shown(command)}` did not answer within {CALL_SECONDS:g} s") from exc
    except OSError as exc:
        raise SpireDevError(f"`{command[0]}` cannot be run: {exc.strerror}") from exc
    if done.returncode != 0:
        raise SpireDevError(f"`{_shown(command)}` failed: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def _shown(command: list[str]) -> str:
    program = command[0].rpartition("/")[2]
    return " ".join([program, *command[1:4]])


def _succeeds(command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=CALL_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
