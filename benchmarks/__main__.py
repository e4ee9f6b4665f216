# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: one run, one table. See README.md beside it."""

from __future__ import annotations

import argparse
import os
import platform
import sys

from benchmarks import evidence, life, once, rooms
from benchmarks.harness import measure, ratio
from benchmarks.world import World, base_s


def main() -> int:
    """Measure, print, and return 1 if a bar is missed and `--check` was given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="rounds of every case (default 25)")
    parser.add_argument("--many", type=int, default=10_000, help="policies of the large set (default 10,000)")
    parser.add_argument("--quick", action="store_true", help="few rounds, small sets: does everything still run?")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed by more than 30 %%")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    given = parser.parse_args()
    rounds, many, live, repeats = (3, 200, 200, 3) if given.quick else (given.rounds, given.many, 10_000, 15)
    missed = 0
    with World(many) as world:
        machine = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
        print(f"{machine}, {rounds} rounds\n")
        rows = [row for group in (life, rooms, evidence) for row in group.ROWS if given.only in row.name]
        wanted = {"BASE_S", *(row.case for row in rows), *(name for row in rows for name in row.names_against)}
        base = base_s()
        cases = [base, *life.cases(world), *rooms.cases(world), *evidence.cases(world)]
        times = measure([case for case in cases if case.name in wanted], rounds=rounds)
        print(f"{'ratio of one run':<58}{'figure':>10}{'bar':>8}     order of size")
        for row in rows:
            figure = ratio(row, times)
            missed += _print(row.name, f"{figure:.3g}x", figure, row.bar, f"{1e6 * times[row.case]:,.1f} us")
        _print("BASE_S: one bare decision of the engine with schema", "1x", 1, None, f"{1e6 * times['BASE_S']:,.1f} us")
        if not given.only:
            figures = [
                once.rotation(world, repeats),
                *once.after_a_pause(world, base, repeats),
                *once.imports(repeats),
                *once.live_grants(world, live),
            ]
            for each in figures:
                missed += _print(each.name, f"{each.value:.3g} {each.unit}", each.value, each.bar, "")
    return 1 if given.check and missed else 0


def _print(name: str, shown: str, figure: float, bar: float | None, size: str) -> bool:
    is_over = bar is not None and figure > bar
    mark = " !" if is_over else "  "
    print(f"{name:<58}{shown:>10}{'' if bar is None else f'{bar:g}':>8}{mark}   {size}")
    return bar is not None and figure > 1.3 * bar


if __name__ == "__main__":
    sys.exit(main())
