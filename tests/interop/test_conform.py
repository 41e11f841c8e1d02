# SPDX-License-Identifier: BSD-2-Clause
"""`vpt conform` against vptd, which passes, and against DPDK's net_vhost, which does not: the suite bites."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.host import Host
from support.vptd import Vptd
from vpt.conform.cases import all_cases
from vpt.dataplane import Policy

CORES = sorted(os.sched_getaffinity(0))


def conform(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what --json printed."""
    done = subprocess.run(
        [sys.executable, "-m", "vpt.cli", "conform", "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    assert printed["schema"] == "vpt.conform/v1", printed
    return done.returncode, printed


def verdicts(printed: dict[str, Any]) -> dict[str, str]:
    return {case["id"]: case["verdict"] for case in printed["cases"]}


@pytest.mark.native
@pytest.mark.timeout(300)
def test_vptd_passes_every_case() -> None:
    """With its process watched: none leaves a descriptor or a mapping behind, either."""
    vptd = Vptd()
    try:
        vptd.start()
        vptd.call("switch.add", name="sw0")
        for port, pairs in (("a", 4), ("b", 1)):
            vptd.call("port.add", switch="sw0", name=port, kind="vhost-user", pairs=pairs)
        assert vptd.process is not None
        code, printed = conform(
            "--socket",
            vptd.socket("a"),
            "--peer",
            vptd.socket("b"),
            "--pid",
            str(vptd.process.pid),
            "--timeout",
            "10",
        )
        bad = [(case["id"], case["why"]) for case in printed["cases"] if case["verdict"] != "passed"]
        pages = "not offered: BACKEND_SEND_FD, HOST_NOTIFIER"
        assert (code, bad) == (
            0,
            [
                ("V54-in-band", "not offered: INBAND_NOTIFICATIONS"),
                ("V55-page", pages),
                ("V55-page-refused", pages),
            ],
        )
        assert printed["summary"]["passed"] == len(all_cases()) - len(bad)
    finally:
        vptd.close()


@pytest.mark.native
def test_what_is_not_always_offered_is_kept_where_it_is(tmp_path: Path) -> None:
    """In-band notifications, which QEMU 7.2 accepts and does not have; pages, of use to a port that polls."""
    with Host(tmp_path) as host:
        path = host.vhost("a", in_band=True, policy=Policy.poll()).path
        code, printed = conform("--socket", str(path), "--case", "V54", "--case", "V55", "--timeout", "10")
    assert code == 0
    assert set(verdicts(printed).values()) == {"passed"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """For sockets: their paths have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vpt-conform-") as name:
        yield Path(name)


def dpdk(folder: Path, options: str = "") -> list[str]:
    """Arguments that have two ports of net_vhost forward to each other."""
    if len(CORES) < 2:
        pytest.skip("missing: a second CPU, for testpmd's forwarding thread")
    a, b = folder / "a.sock", folder / "b.sock"
    ports = " ".join(f"--vdev net_vhost{i},iface={p},queues=1{options}" for i, p in enumerate((a, b)))
    command = (
        f"env RUNTIME_DIRECTORY={folder} dpdk-testpmd --lcores 0@{CORES[0]},1@{CORES[1]} --no-huge -m 256 "
        f"--no-pci --no-telemetry {ports} -- --forward-mode=io --auto-start --nb-cores=1 "
        "--total-num-mbufs=4096 --no-mlockall"
    )
    return ["--socket", str(a), "--peer", str(b), "--restart", command]


@pytest.mark.needs("dpdk-testpmd")
def test_dpdk_fails_and_crashes_where_it_is_known_to(folder: Path) -> None:
    """Of each kind of verdict one; after the crash the back-end is started again and the run goes on."""
    expected = {
        "V7-transmit": "passed",
        "V9-disabled-transmit": "failed",
        "V18-memory-slots": "skipped",
        "S4-no-payload": "failed",
        "S21-kick-0x10000": "failed",
        "M4-gpa-overlap": "failed",
        "M6-shrink-while-running": "crashed",
        "Q18-receive-read-only": "failed",
    }
    chosen = [argument for case in expected for argument in ("--case", case)]
    code, printed = conform(*dpdk(folder), *chosen, "--timeout", "1")
    assert (code, verdicts(printed)) == (1, expected)
    crash = next(case for case in printed["cases"] if case["verdict"] == "crashed")
    assert "SIGBUS" in crash["why"]


@pytest.mark.needs("dpdk-testpmd")
def test_a_back_end_that_connects_is_tested_by_listening(folder: Path) -> None:
    code, printed = conform(
        *dpdk(folder, ",client=1"), "--listen", "--timeout", "5", "--case", "V1", "--case", "V7"
    )
    assert (code, printed["summary"]["passed"]) == (0, 2)
