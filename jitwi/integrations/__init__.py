# SPDX-License-Identifier: Apache-2.0
"""Bridges to frameworks and clients, one module and one extra each; nothing is imported before it is asked for."""

__all__: list[str] = []
