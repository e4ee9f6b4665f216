# SPDX-License-Identifier: Apache-2.0
"""What jitwi costs, as ratios within one run. Not part of the package; start it with `python -m benchmarks`."""
