# SPDX-License-Identifier: BSD-2-Clause
"""Each line of the checklist of hostile inputs has a test that bears its number, or a reason why it has none.

docs/hostile-checklist.md has the lines. A test bears a number by its name (test_s15_..., test_m12_m14_...) or
by the name of one of its parameters ("S21 NUM of ring 0x100").
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/hostile-checklist.md"
WHERE = ("hostile", "proto")
COUNTS = {"S": 33, "M": 20, "Q": 31, "P": 12, "L": 10}
LINES = [f"{letter}{n}" for letter, last in COUNTS.items() for n in range(1, last + 1)]
CANNOT: dict[str, str] = {}
"""Lines that have no test, and why."""

ONLOOKERS = {"scene", "hasty_scene", "bystanders"}
"""Fixtures with ports beside the villain's, whose packets must all arrive, and a limit of log lines."""
ALONE = {"L1", "L2", "L7", "L8", "L9"}
"""Lines about whole daemons, or ports by the thousand."""

NUMBER = re.compile(r"(?<![A-Za-z0-9])([SMQPL]\d{1,2})(?![A-Za-z0-9])", re.IGNORECASE)


def others() -> set[Path]:
    """The files whose tests may bear a number."""
    return {path for where in WHERE for path in (TESTS / where).rglob("test_*.py")} - {Path(__file__)}


def collected_anew() -> list[str]:
    """Names of all their tests, where this run has not got them all."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *map(str, others())],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [line.partition("::")[2] for line in done.stdout.splitlines()]


def numbers(name: str) -> set[str]:
    """Those that a test of this name bears."""
    return {number.upper() for number in NUMBER.findall(name.replace("_", " "))}


@pytest.fixture(scope="module")
def bearers(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Tests by the numbers that they bear."""
    items = [item for item in request.session.items if item.path in others()]
    complete = {item.path for item in items} == others() and not request.config.option.keyword
    names = [item.name for item in items] if complete else collected_anew()
    found: dict[str, list[str]] = {line: [] for line in LINES}
    for name in names:
        for number in numbers(name):
            found.setdefault(number, []).append(name)
    return found


def test_the_checklist_has_106_lines() -> None:
    assert len(LINES) == 106


def test_the_page_that_says_what_they_are_has_each_line_once_and_in_order() -> None:
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in PAGE.read_text().splitlines()]
    lines = [row for row in rows if row and NUMBER.fullmatch(row[0])]
    assert [row[0] for row in lines] == LINES
    assert all(len(row) == 3 and all(row) for row in lines), "what the peer does, and what vpt does"


@pytest.mark.parametrize("line", LINES)
def test_each_line_has_a_test_or_a_reason(bearers: dict[str, list[str]], line: str) -> None:
    assert bool(bearers[line]) != (line in CANNOT), bearers[line] or "neither a test nor a reason"


def test_no_test_bears_a_number_that_is_not_on_the_list(bearers: dict[str, list[str]]) -> None:
    assert set(bearers) - set(LINES) == set()


def test_each_test_that_bears_a_number_has_onlookers(request: pytest.FixtureRequest) -> None:
    """Of those that this run has: nobody else may notice what its villain does."""
    assert not [
        item.name
        for item in request.session.items
        if item.path in others()
        and numbers(item.name) - ALONE
        and not ONLOOKERS & set(getattr(item, "fixturenames", ()))
    ]
