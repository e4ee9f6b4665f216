# SPDX-License-Identifier: Apache-2.0
"""`python -m jitwi`: the command line. Holds nothing; see `jitwi.cli`."""

from __future__ import annotations

from jitwi.cli import main

if __name__ == "__main__":
    main()
