# SPDX-License-Identifier: BSD-2-Clause
"""`vpt conform` without a back-end: its cases, choosing from them, what it says when nobody is there."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from support.vptd import run_vpt
from vpt.conform.backend import Door
from vpt.conform.case import GROUPS, Cases, select
from vpt.conform.cases import all_cases
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, GuestMemory, Span
from vpt.vhost_user import ProtocolFeature, VirtioFeature

CASES = all_cases()


def test_each_case_has_an_id_of_its_own_that_begins_with_a_line_of_the_checklist() -> None:
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if not re.fullmatch(r"[SMQPLV]\d+-[A-Za-z0-9^-]+", i)] == []


def test_each_case_says_which_rule_it_checks_and_where_that_is_written() -> None:
    assert [case.id for case in CASES if not (case.rule and case.source and case.group in GROUPS)] == []


def test_cases_are_chosen_by_id_by_line_and_by_group() -> None:
    assert [case.id for case in select(CASES, ["S3-size-of-4-GiB"])] == ["S3-size-of-4-GiB"]
    assert {case.id.split("-")[0] for case in select(CASES, ["S3", "M14"])} == {"S3", "M14"}
    assert {case.group for case in select(CASES, ["memory"])} == {"memory"}
    assert select(CASES, []) == CASES
    with pytest.raises(ValueError):
        select(CASES, ["S"])


def test_a_case_is_skipped_by_the_name_of_what_it_lacks() -> None:
    cases = Cases("protocol", "here")
    cases.add(
        "V1-x", "rule", lambda _: None, virtio=VirtioFeature.IN_ORDER, protocol=ProtocolFeature.MQ, peer=True
    )
    (case,) = cases.all
    assert case.lacks(0, 0, peer=True) == "not offered: IN_ORDER, MQ"
    assert (
        case.lacks(int(VirtioFeature.IN_ORDER), int(ProtocolFeature.MQ), peer=False)
        == "needs a second port: --peer"
    )
    assert case.lacks(int(VirtioFeature.IN_ORDER), int(ProtocolFeature.MQ), peer=True) == ""


@pytest.mark.parametrize("at", [0, PAGE - 1, PAGE + 100, PAGE + MIB, 2 * PAGE + MIB - 1])
def test_guarded_memory_shows_a_byte_that_nobody_was_given(at: int) -> None:
    """Around the region, and in the part of it that was not allocated."""
    with GuestMemory([Span(GPA_BASE, MIB, PAGE, PAGE)]) as memory:
        memory.write(memory.alloc(64), bytes(64))
        assert memory.untouched()
        memory.regions[0].map[at] = 0
        assert not memory.untouched()


def test_the_list_is_printed_and_is_json() -> None:
    done = run_vpt(Path("/nonexistent"), "conform", "--list", "--case", "S21")
    assert done.returncode == 0
    assert "S21-num-0x10000" in done.stdout
    listed = json.loads(run_vpt(Path("/nonexistent"), "conform", "--list", "--json").stdout)
    assert listed["schema"] == "vpt.conform.list/v1"
    assert len(listed["cases"]) == len(CASES)


def test_wrong_usage_and_an_absent_back_end_have_a_hint(tmp_path: Path) -> None:
    no_socket = run_vpt(tmp_path, "conform")
    assert (no_socket.returncode, "hint" in no_socket.stderr) == (2, True)
    no_case = run_vpt(tmp_path, "conform", "--case", "X1", "--socket", "x")
    assert (no_case.returncode, "--list" in no_case.stderr) == (2, True)
    nobody = run_vpt(tmp_path, "conform", "--socket", str(tmp_path / "nobody.sock"))
    assert (nobody.returncode, "--restart" in nobody.stderr) == (1, True)
    ends_at_once = run_vpt(
        tmp_path, "conform", "--socket", str(tmp_path / "x.sock"), "--restart", "sh -c 'echo no; exit 7'"
    )
    assert ends_at_once.returncode == 1
    assert "exit code 7; it said: no" in ends_at_once.stderr
    same = run_vpt(tmp_path, "conform", "--socket", "a.sock", "--peer", "./a.sock")
    assert (same.returncode, "another port" in same.stderr) == (2, True)
    no_pid = run_vpt(tmp_path, "conform", "--socket", "a.sock", "--pid", str(2**22))
    assert (no_pid.returncode, f"no process {2**22}" in no_pid.stderr) == (1, True)


def test_listening_takes_nothing_away_that_is_not_its_own(tmp_path: Path) -> None:
    """A file, and a socket that somebody listens on, are refused and stay; one left over is replaced."""
    plain, live, left = (tmp_path / name for name in ("plain.txt", "live.sock", "left.sock"))
    plain.write_text("data")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(left))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(live))
        listener.listen()
        for path in (plain, live):
            done = run_vpt(tmp_path, "conform", "--listen", "--socket", str(path), "--timeout", "1")
            assert (done.returncode, str(path) in done.stderr, "hint" in done.stderr) == (1, True, True)
        Door(left, listen=True).close()
    assert plain.read_text() == "data"
    assert live.is_socket()
    assert not left.exists()
