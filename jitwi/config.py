# SPDX-License-Identifier: Apache-2.0
"""The configuration file, for `JIT.from_env()` and the command line.

Holds how the file is found, read and checked, how issuers are made from it, and where state lives unless told
otherwise. Does not hold defaults of `JIT`, nor secrets: an issuer's options name files that hold them.

Example of a file::

    policies = "policies/"                 # relative paths start at the folder of this file
    state_dir = "/var/lib/orders/jitwi"

    [identity]
    spiffe_id = "spiffe://example.org/ns/prod/refunds"

    [issuers.orders-api]
    type = "task-token"                    # an entry point of the group `jitwi.issuers`
    audience = "https://orders.example.org"
"""

from __future__ import annotations

import os
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from jitwi.errors import ConfigurationError, JitwiError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from jitwi.credentials.port import Issuer

__all__ = ["CONFIG_VARIABLE", "ISSUER_GROUP", "Config", "default_state_dir", "load_config"]

CONFIG_VARIABLE = "JITWI_CONFIG"
ISSUER_GROUP = "jitwi.issuers"
MAX_CONFIG_BYTES = 262_144

_TOP = {"policies": str, "state_dir": str, "audit_dir": str, "identity": dict, "issuers": dict}
_IDENTITY = {"kind": str, "spiffe_id": str, "hint": str, "endpoint": str}


@attrs.frozen
class Config:
    """A configuration file, read and checked; issuers are made when asked for.

    Args:
        path: The file.
        policies: Folder of policies, or None.
        state_dir: Folder of the state, or None for the default.
        audit_dir: Folder of the audit chains, or None for the default.
        identity: Which identity, by the keys of the file.
        issuer_options: Options of each issuer, by its name; `type` among them.
    """

    path: Path
    policies: Path | None
    state_dir: Path | None
    audit_dir: Path | None
    identity: Mapping[str, str]
    issuer_options: Mapping[str, Mapping[str, Any]]

    def issuers(self) -> dict[str, Issuer]:
        """Make the issuers. No I/O beyond loading their code.

        Raises:
            ConfigurationError: A type is unknown or cannot be loaded, or an option is wrong; names issuer and file.
        """
        return {name: self._issuer(name, options) for name, options in self.issuer_options.items()}

    def jit_arguments(self, *, without: Container[str] = ()) -> dict[str, Any]:
        """Return the arguments of `JIT` that the file sets.

        Args:
            without: Names of those that somebody else gives: they are neither made nor missed.

        Raises:
            ConfigurationError: As for `issuers()`, or the file names no policies.
        """
        arguments: dict[str, Any] = {}
        if "policies" not in without:
            arguments["policies"] = self._require_policies()
        if "issuers" not in without:
            arguments["issuers"] = self.issuers()
        if self.state_dir is not None:
            arguments["state_dir"] = self.state_dir
        if self.audit_dir is not None:
            arguments["audit"] = self.audit_dir
        for key, value in self.identity.items():
            arguments["identity" if key == "kind" else key] = value
        return arguments

    def _require_policies(self) -> Path:
        if self.policies is None:
            raise ConfigurationError(f"`{self.path}` does not say where the policies are", remedy="set `policies`")
        return self.policies

    def _issuer(self, name: str, options: Mapping[str, Any]) -> Issuer:
        kind = options["type"]
        found = [point for point in entry_points(group=ISSUER_GROUP) if point.name == kind]
        if len(found) != 1:
            known = "`, `".join(sorted({point.name for point in entry_points(group=ISSUER_GROUP)})) or "none"
            what = "unknown" if not found else "provided by several packages"
            raise ConfigurationError(
                f"issuer `{name}` in `{self.path}`: type `{kind}` is {what}", remedy=f"installed are: `{known}`"
            )
        try:
            issuer: Issuer = found[0].load()(**{key: value for key, value in options.items() if key != "type"})
        except JitwiError as exc:
            raise ConfigurationError(f"issuer `{name}` in `{self.path}`: {exc.message}", remedy=exc.remedy) from exc
        except Exception as exc:
            raise ConfigurationError(
                f"issuer `{name}` in `{self.path}` could not be made: `{type(exc).__name__}`",
                remedy=f"check its options against the arguments of type `{kind}`",
            ) from exc
        return issuer


def default_state_dir() -> Path:
    """Return where the state of this user lives unless told otherwise: the same for every process of one user.

    Raises:
        ConfigurationError: The user has no home.
    """
    from jitwi.state.folder import default_folder

    try:
        return default_folder()
    except JitwiError as exc:
        raise ConfigurationError(exc.message, reasons=exc.reasons, remedy=exc.remedy) from exc


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read a configuration file.

    Args:
        path: Which; default: the one that `JITWI_CONFIG` names.

    Raises:
        ConfigurationError: There is none, or it is wrong; names file and key.
    """
    named = os.environ.get(CONFIG_VARIABLE, "") if path is None else os.fspath(path)
    if not named:
        raise ConfigurationError("no configuration file is named", remedy=f"set `{CONFIG_VARIABLE}` or give `--config`")
    file = Path(named)
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigurationError(f"`{file}` is larger than {MAX_CONFIG_BYTES} bytes")
        read = tomllib.loads(content.decode())
    except OSError as exc:
        raise ConfigurationError(f"`{file}` cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError(f"`{file}` is not a TOML file: {str(exc)[:200]}") from exc
    _check(file, "", read, _TOP)
    identity = read.get("identity", {})
    _check(file, "identity.", identity, _IDENTITY)
    issuers = read.get("issuers", {})
    for name, options in issuers.items():
        if not isinstance(options, dict) or not isinstance(options.get("type"), str):
            raise ConfigurationError(f"`{file}`: issuer `{name}` has no `type`", remedy=f"add `[issuers.{name}] type`")
    folder = file.absolute().parent
    places = {key: folder / read[key] if key in read else None for key in ("policies", "state_dir", "audit_dir")}
    return Config(file, places["policies"], places["state_dir"], places["audit_dir"], identity, issuers)


def _check(file: Path, prefix: str, table: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for key, value in table.items():
        if key not in known:
            raise ConfigurationError(
                f"`{file}`: unknown key `{prefix}{key}`", remedy=f"known are: `{'`, `'.join(known)}`"
            )
        if not isinstance(value, known[key]):
            raise ConfigurationError(f"`{file}`: `{prefix}{key}` is not `{known[key].__name__}`")
