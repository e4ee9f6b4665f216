# SPDX-License-Identifier: Apache-2.0
"""What a record costs, as ratios within one run. Source: the audit row of the performance targets."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time

import pytest

from jitwi.audit import AuditLog, files, verify
from jitwi.audit.events import UseAllowed

pytestmark = pytest.mark.timing


def best(call, *, count=500, rounds=20):
    """Return the smallest mean time of one call, in microseconds."""
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - before) / count)
    return min(times) * 1e6


def test_line_against_json_dumps(folder, make_subject, make_decision, record_property):
    """A record of a use costs about as much as the naive line at most: json.dumps, SHA-256, write."""
    log = AuditLog(folder)
    event = UseAllowed(make_subject(), "lease-1", 1, make_decision())
    log.record(event, durable=True)
    ours = best(lambda: log.record(event))
    (path,) = folder.glob("chain-*")
    record = json.loads(path.read_bytes().splitlines()[-1])
    naive_file = os.open(folder.parent / "naive", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def naive():
        line = json.dumps(record).encode()
        os.write(naive_file, line + hashlib.sha256(line).hexdigest().encode() + b"\n")

    theirs = best(naive)
    os.close(naive_file)
    encoded = best(lambda: log._encode(event))
    log.close()
    record_property("microseconds", {"record": ours, "encode": encoded, "naive": theirs})
    print(f"\nrecord {ours:.1f} us (encode {encoded:.1f}), naive {theirs:.1f} us, ratio {ours / theirs:.2f}")
    assert ours / theirs <= 1.25
    before = time.perf_counter()
    found = verify(folder)
    print(f"verify {found.records / (time.perf_counter() - before):.0f} lines/s")
    assert found.is_intact


def test_group_commit_shares_syncs(folder, monkeypatch, make_subject, make_decision):
    """Eight threads on a disk of 2 ms per sync: group commit is at least 1.7 times as fast as a sync per record."""
    log = AuditLog(folder)
    log.open()
    syncs = []

    def slow(fd):
        syncs.append(fd)
        time.sleep(0.002)

    monkeypatch.setattr(files, "_sync", slow)
    event = UseAllowed(make_subject(), "lease-1", 1, make_decision())
    threads = [threading.Thread(target=lambda: [log.record(event, durable=True) for _ in range(40)]) for _ in range(8)]
    before = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    took = time.perf_counter() - before
    count = len(syncs)
    log.close()
    print(f"\n320 durable records, {count} syncs, {took * 1000:.0f} ms")
    assert 320 * 0.002 / took >= 1.7
