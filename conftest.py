# SPDX-License-Identifier: Apache-2.0
"""Rules for a whole test run: the documentation runs, and a required SPIRE was really there.

Every `python` block of README.md and docs/ runs, top to bottom, one namespace per page, in an empty folder of its own.
A `cedar` or `cedarschema` block is written to `policies/` in that folder first, so that a page can show a policy and
then use it. What cannot run is marked as another language. The `>>>` examples in docstrings of the package run too.

Fixtures for tests are not here: users get them as well, from `jitwi.testing.pytest_plugin`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

if TYPE_CHECKING:
    from sybil import Example

REQUIRE_SPIRE = os.environ.get("JITWI_REQUIRE_SPIRE") == "1"


class _CedarParser(CodeBlockParser):  # type: ignore[misc, unused-ignore]
    """Policy or schema text: written to the page's folder."""

    def evaluate(self, example: Example) -> None:
        folder = Path("policies")
        folder.mkdir(exist_ok=True)
        with (folder / f"page.{self.language}").open("a") as page:
            page.write(example.parsed + "\n")


def _enter_folder(namespace: dict[str, Any]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="jw"))
    namespace["_folders"] = (Path.cwd(), folder)
    os.chdir(folder)


def _leave_folder(namespace: dict[str, Any]) -> None:
    before, folder = namespace.pop("_folders")
    os.chdir(before)
    shutil.rmtree(folder, ignore_errors=True)


_pages = Sybil(
    parsers=[_CedarParser("cedar"), _CedarParser("cedarschema"), PythonCodeBlockParser()],
    patterns=["*.md"],
    setup=_enter_folder,
    teardown=_leave_folder,
)
_docstrings = Sybil(
    parsers=[DocTestParser()],
    patterns=["jitwi/*.py", "jitwi/**/*.py"],
    document_types={".py": PythonDocStringDocument},
)


def _whole_traceback(_item: SybilItem, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    """Show the failure of an example whole: sybil's own filter gives up on a cause that was raised elsewhere."""
    return excinfo.traceback


SybilItem._traceback_filter = _whole_traceback  # type: ignore[assignment, method-assign, unused-ignore]  # noqa: SLF001 - its only hook

pytest_collect_file = (_pages + _docstrings).pytest()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the examples of a page back into the order of the page, whatever shuffles the tests."""
    examples = [item for item in items if isinstance(item, SybilItem)]
    others = [item for item in items if not isinstance(item, SybilItem)]
    examples.sort(key=lambda item: (str(item.path), item.example.line))
    items[:] = [*others, *examples]


class _SpireWitness:
    """Counts what became of the tests marked `spire` and fails a run that required SPIRE and did without."""

    def __init__(self) -> None:
        self.passed = 0
        self.skipped = 0
        self.complaint = ""
        self.marked: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # Not by `report.keywords`: a folder called `spire` is one of those.
        self.marked = {item.nodeid for item in items if item.get_closest_marker("spire")}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid not in self.marked:
            return
        self.skipped += report.skipped and not hasattr(report, "wasxfail")
        self.passed += report.passed and report.when == "call"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not REQUIRE_SPIRE:
            return
        config = session.config
        chosen = any(getattr(config.option, name, None) for name in ("keyword", "lf", "collectonly"))
        chosen = chosen or config.option.markexpr not in ("", "not timing")
        whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen
        if self.skipped:
            self.complaint = f"{self.skipped} tests on the real SPIRE were skipped although JITWI_REQUIRE_SPIRE=1"
        elif whole and not self.passed:
            self.complaint = "no test on the real SPIRE ran although JITWI_REQUIRE_SPIRE=1"
        if self.complaint and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.complaint:
            terminalreporter.write_line(f"FAILED: {self.complaint}", red=True)
        elif self.passed or self.skipped:
            terminalreporter.write_line(f"on the real SPIRE: {self.passed} passed, {self.skipped} skipped")


def pytest_configure(config: pytest.Config) -> None:
    """Watch over the tests marked `spire`."""
    config.pluginmanager.register(_SpireWitness(), "jitwi-spire-witness")
