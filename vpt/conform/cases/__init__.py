# SPDX-License-Identifier: BSD-2-Clause
"""The cases, a file for each group. A file registers its cases; nothing else knows them by name."""

from __future__ import annotations

from importlib import import_module

from vpt.conform.case import GROUPS, Case

__all__ = ["all_cases"]


def all_cases() -> list[Case]:
    """All of them, group by group."""
    cases: list[Case] = []
    for group in GROUPS:
        cases += import_module(f"vpt.conform.cases.{group}").CASES.all
    return cases
