# SPDX-License-Identifier: Apache-2.0
"""Configuration of the documentation build: `python3 run.py check -- --session docs`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "jitwi"
author = "The jitwi authors"
copyright = f"2026, {author}"  # noqa: A001
version = release = _project["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Invariants", "notes_style"), ("Source", "notes_style"), ("Tree", "notes_style")]

nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # annotations name private modules and the standard library; pages are checked
suppress_warnings = ["misc.highlighting_failure", "ref.python"]

html_theme = "furo"
html_title = f"jitwi {version}"
html_copy_source = False

_CODE = re.compile(r"(?<![`:\\\w])`([^`]+)`(?![`_])")


def _code_in_backticks(_app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Read `single backticks` in docstrings as code, as Markdown does."""
    lines[:] = _CODE.sub(r"``\1``\\ ", "\n".join(lines)).split("\n")


def _documented_elsewhere(
    app: Sphinx, what: str, _name: str, obj: object, _skip: object, _options: object
) -> bool | None:
    """Leave out what a room shows again from another room: it stands on that room's page."""
    room = app.env.temp_data.get("autodoc:module", "")
    home = getattr(obj, "__module__", room)
    return True if what == "module" and not f"{home}.".startswith(f"{room}.") else None


def setup(app: Sphinx) -> None:
    """Register the hooks."""
    app.connect("autodoc-process-docstring", _code_in_backticks)
    app.connect("autodoc-skip-member", _documented_elsewhere)
