# SPDX-License-Identifier: Apache-2.0
"""The workload that does tasks. Its identity is the process's own; the test tells it what to try."""

from __future__ import annotations

import base64
import collections
import json
import threading
import time
from datetime import timedelta

import control
import httpx

import jitwi
from jitwi.clock import SystemClock
from jitwi.errors import JitwiError
from jitwi.issuers import JwtSvid, TaskTokens
from jitwi.task import sha256_base64url
from jitwi.tokens import TaskKey, input_digest, mint_proof

CONFIG = control.configuration()
ORIGIN = CONFIG["origin"]
jits, blocks, grants, storms = {}, {}, {}, {}
client = httpx.Client(timeout=20)


def order(number):
    """Return the resource that a number means; `r1` is a report."""
    return jitwi.Entity("Shop::Report" if str(number).startswith("r") else "Shop::Order", str(number))


def now():
    """Seconds on the boot-time clock."""
    return SystemClock().now().boot


def make(name="main", *, issuers=True, max_staleness=60.0, **choice):
    """Make a `JIT`; starts at the first task."""
    made = {
        "orders": TaskTokens("https://orders.example.test", origin=ORIGIN, serves=["read", "refund", "cancel"]),
        "reports": JwtSvid("https://reports.example.test", origin=ORIGIN, serves=["report"]),
        "archive": JwtSvid("https://archive.example.test", origin=ORIGIN, serves=["archive"]),
    }
    jits[name] = jitwi.JIT(
        CONFIG["policies"],
        issuers=made if issuers else None,
        state_dir=f"{CONFIG['state']}/{name}",
        max_staleness=timedelta(seconds=max_staleness),
        **choice,
    )


def task(permissions, *, jit="main", task="refund-order", ttl=100, **declaration):
    """Declare a task."""
    wanted = [jitwi.Permission(action, order(number)) for action, number in permissions]
    return jits[jit].task(task, permissions=wanted, ttl=timedelta(seconds=ttl), **declaration)


def open_task(name, permissions, **declaration):
    """Enter a task's block; a refusal says how long it took."""
    block = task(permissions, **declaration)
    began = now()
    try:
        grants[name] = block.__enter__()
    except JitwiError as error:
        error.reasons = (*error.reasons, f"after {now() - began:.3f} s")
        raise
    blocks[name] = block
    return {"txn": grants[name].txn, "workload": str(grants[name].workload)}


def leave(name):
    """Leave its block."""
    blocks.pop(name).__exit__(None, None, None)
    return ending(name)


def ending(name):
    """How it ended, or None."""
    found = grants[name].ending
    return found and {
        "cause": found.cause.value,
        "credentials": {one.issuer: one.outcome.value for one in found.credentials},
    }


def await_end(name, seconds):
    """Wait for the end of a grant that nobody here ends; return when it was over, on the boot-time clock."""
    limit = now() + seconds
    while grants[name].is_live and now() < limit:
        time.sleep(0.005)
    return None if grants[name].is_live else now()


def credential(name, issuer):
    """Obtain a credential."""
    return repr(grants[name].credential(issuer))


def headers(name, path, action, number, *, input=None, issuer="orders"):
    """Make the headers of one use."""
    return grants[name].credential(issuer).headers("POST", ORIGIN + path, action, order(number), input)


def use(name, path, action, number, *, input=None, body=None, issuer="orders"):
    """One use by httpx, as users write it."""
    auth = grants[name].credential(issuer).auth(action, order(number), input=input)
    return client.post(ORIGIN + path, auth=auth, json=input if body is None else body).status_code


def send(path, headers, *, body=None):
    """Send headers that somebody made."""
    return client.post(ORIGIN + path, headers=headers, json=body).status_code


def forge(path, token, action, number, *, input=None):
    """Send somebody else's token with a proof by a key of our own."""
    proof = mint_proof(
        TaskKey(),
        ath=sha256_base64url(token.encode()),
        method="POST",
        url=ORIGIN + path,
        action=jitwi.Entity("Shop::Action", action),
        resource=order(number),
        digest=input_digest(input),
        now=SystemClock().now().wall,
    )
    return send(path, {"Authorization": f"DPoP {token}", "DPoP": proof}, body=input)


def check(name, action, number, *, input=None):
    """Check one use without a credential."""
    return grants[name].check(action, order(number), input=input).number


def token_of(name):
    """Who endorsed which key in the token of now: (SHA-256 of the leaf, thumbprint of the task key)."""
    text = headers(name, "/orders/42/read", "read", 42)["Authorization"].split()[1]
    header, claims = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in text.split(".")[:2])
    return sha256_base64url(header["x5c"][0].encode()), claims["cnf"]["jkt"]


def serving(seconds, jit="main"):
    """Try to open a task until it works; return when it did, on the boot-time clock."""
    limit = now() + seconds
    while True:
        try:
            with task([["read", 42]], jit=jit):
                return now()
        except JitwiError:
            if now() > limit:
                raise


def refusing(seconds, jit="main"):
    """Open tasks until one is refused."""
    limit = now() + seconds
    while now() < limit:
        with task([["read", 42]], jit=jit):
            time.sleep(0.05)


def identity(jit="main", *, version=0, seconds=0.0):
    """State of a `JIT`'s identity, once it has reached a version."""
    source = jits[jit]._runtime().identity
    limit = now() + seconds
    while source.status().version < version and now() < limit:
        time.sleep(0.02)
    found = source.status()
    return {"state": found.state.value, "version": found.version, "not_after": found.not_after}


def storm_begin(name):
    """Use a task all the time, until `storm_end`."""
    seen, stopped = collections.Counter(), threading.Event()

    def run():
        while not stopped.is_set():
            try:
                seen[str(use(name, "/orders/42/read", "read", 42))] += 1
            except Exception as error:  # noqa: BLE001 - counted
                seen[repr(error)] += 1
            stopped.wait(0.01)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    storms[name] = seen, stopped, threads


def storm_end(name):
    """Stop it and return what was answered how often."""
    seen, stopped, threads = storms.pop(name)
    stopped.set()
    for thread in threads:
        thread.join(30)
    return seen


def close(jit="main"):
    """Close a `JIT`."""
    jits.pop(jit).close()


control.serve(
    {
        "make": make,
        "open": open_task,
        "leave": leave,
        "ending": ending,
        "await_end": await_end,
        "credential": credential,
        "headers": headers,
        "use": use,
        "send": send,
        "forge": forge,
        "check": check,
        "token_of": token_of,
        "serving": serving,
        "refusing": refusing,
        "identity": identity,
        "storm_begin": storm_begin,
        "storm_end": storm_end,
        "close": close,
    }
)
for jit in jits.values():
    jit.close()
