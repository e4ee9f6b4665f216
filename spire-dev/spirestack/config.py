# SPDX-License-Identifier: Apache-2.0
"""Run directory, node certificate and rendered configuration. Starts no process."""

from __future__ import annotations

import os
import re
import secrets
import socket
import string
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from spirestack.errors import SpireDevError

HOME = Path(__file__).resolve().parent.parent
TEMPLATES = HOME / "templates"
NODE_NAME = "dev"
# Unix socket paths end at 107 bytes; the longest of ours is RUN/f/p/NAME/api.sock.
MAX_RUN_DIR_BYTES = 50
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SAFE_PATH = re.compile(r"/[A-Za-z0-9._/-]+")
_NODE_VALIDITY = timedelta(days=30)
# name: mode. Only `w` (Workload API) may be entered by everybody.
_FOLDERS = {"s": 0o750, "w": 0o755, "adm": 0o750, "server": 0o700, "agent": 0o700, "log": 0o700, "p": 0o711}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the templates need to know.

    Args:
        trust_domain: Name without scheme.
        fast: 500 ms synchronisation, X.509 TTL 60 s, JWT TTL 10 s instead of SPIRE's defaults.
        log_level: Of all three programs.
    """

    trust_domain: str
    fast: bool = False
    log_level: str = "WARN"

    def __post_init__(self) -> None:
        """Refuse names that SPIFFE-ID section 2.1 does not allow."""
        if _TRUST_DOMAIN.fullmatch(self.trust_domain) is None:
            raise SpireDevError(
                f"`{self.trust_domain}` is not a trust domain name",
                remedy="lowercase letters, digits, dots, dashes and underscores only",
            )


def make_run_dir(wanted: Path | None) -> Path:
    """Create the short directory of a stack with its folders.

    Args:
        wanted: A path that does not exist yet, or ``None`` for a new one under /tmp.

    Returns:
        The directory, mode 0711 so that workloads of other users can reach their socket.

    Raises:
        SpireDevError: Path too long, not plain, or in use.
    """
    if wanted is None:
        run = Path(tempfile.mkdtemp(prefix="jw", dir="/tmp"))
    else:
        run = Path(os.path.abspath(wanted))  # noqa: PTH100 - resolve() would follow links and lengthen the path
        if _SAFE_PATH.fullmatch(str(run)) is None or len(os.fsencode(run)) > MAX_RUN_DIR_BYTES:
            raise SpireDevError(
                f"run directory `{run}` cannot be used",
                remedy=f"at most {MAX_RUN_DIR_BYTES} plain characters: sockets live in it",
            )
        try:
            run.mkdir(mode=0o700)
        except OSError as exc:
            raise SpireDevError(
                f"run directory `{run}` cannot be made: {exc.strerror}",
                remedy="name a new directory in an existing one",
            ) from exc
    for name, mode in _FOLDERS.items():
        folder = run / name
        folder.mkdir()
        folder.chmod(mode)
    run.chmod(0o711)
    return run


def free_port() -> int:
    """A TCP port nobody listens on right now. Somebody may take it: the caller tries again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def render(name: str, run: Path, settings: Settings, *, server_port: int, oidc_port: int | None) -> Path:
    """Write RUN/NAME.conf from its template.

    Args:
        name: ``server``, ``agent`` or ``oidc``.
        run: Run directory.
        settings: Trust domain and speeds.
        server_port: TCP port of the server.
        oidc_port: TCP port of the OIDC provider, ``None`` without one.

    Returns:
        The file written, mode 0600.
    """
    values = {
        "RUN": str(run),
        "TRUST_DOMAIN": settings.trust_domain,
        "SERVER_PORT": str(server_port),
        "OIDC_PORT": str(oidc_port),
        "LOG_LEVEL": settings.log_level,
        "X509_TTL": "60s" if settings.fast else "1h",
        "JWT_TTL": "10s" if settings.fast else "5m",
        "JWT_ISSUER": "" if oidc_port is None else f'  jwt_issuer = "http://127.0.0.1:{oidc_port}"',
        "SERVER_EXPERIMENTAL": _experimental("cache_reload_interval", fast=settings.fast),
        "AGENT_EXPERIMENTAL": _experimental("sync_interval", fast=settings.fast),
    }
    template = string.Template((TEMPLATES / f"{name}.conf.tmpl").read_text(encoding="utf-8"))
    return write_private(run / f"{name}.conf", template.substitute(values).encode())


def _experimental(key: str, *, fast: bool) -> str:
    return f'  experimental {{\n    {key} = "500ms"\n  }}' if fast else ""


def write_private(path: Path, content: bytes) -> Path:
    """Write a file of mode 0600 by rename, so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
    return path


def make_node_credentials(run: Path) -> None:
    """Node CA (node-ca.crt), node certificate and key (node.crt, node.key) for the x509pop attestor.

    The CA's key is dropped after this one signature.
    """
    now = datetime.now(UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("spire-dev node CA")

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + _NODE_VALIDITY)
        )

    ca = (
        builder(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        builder(_name(NODE_NAME), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    write_private(run / "node-ca.crt", ca.public_bytes(pem))
    write_private(run / "node.crt", leaf.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(run / "node.key", private)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
