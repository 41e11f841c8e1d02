# SPDX-License-Identifier: BSD-2-Clause
"""KVM stats descriptors, borrowed from a running VMM with pidfd_getfd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.exits_guest import TINY_VMM
from vpt.errors import GuestError, MissingError
from vpt.exits import meter
from vpt.exits.session import Session, open_session
from vpt.exits.sources.stats_fd import StatsFd

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leaks")]


class Vmm:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, TINY_VMM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def port_writes(self, count: int) -> int:
        assert self.process.stdin
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return int(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def vmm(no_leaks: None) -> Iterator[Vmm]:  # to be ended before what is left is counted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm can't be opened: modprobe kvm_intel or kvm_amd, or join the group kvm")
    vmm = Vmm()
    yield vmm
    vmm.end()


def counted(session: Session, vmm: Vmm, writes: int) -> meter.Measure:
    before = session.sample()
    assert vmm.port_writes(writes) == writes
    return meter.measure(session.identity, meter.delta(session.identity, before, session.sample()))


def test_borrowed_descriptors_count_the_vmms_exits(vmm: Vmm) -> None:
    with open_session(str(vmm.process.pid)) as session:
        assert session.identity.source == "stats-fd", "the one that disturbs the VM least comes first"
        m = counted(session, vmm, 10_000)
    assert m.refused is None
    assert m.counted == pytest.approx(10_000, rel=0.01)


def test_the_vmm_keeps_its_descriptors(vmm: Vmm) -> None:
    for _ in range(3):
        with open_session(str(vmm.process.pid), "stats-fd") as session:
            assert counted(session, vmm, 100).counted == pytest.approx(100, abs=5)


def test_frozen_counters_of_a_dead_vmm_are_not_read(vmm: Vmm) -> None:
    """The borrowed descriptor still answers, with the last values: a zero that would look like a result."""
    with StatsFd(vmm.process.pid) as source:
        source.read()
        vmm.end()
        with pytest.raises(GuestError, match="ended"):
            source.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_foreign_vmm_is_refused_with_a_next_step(vmm: Vmm) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            StatsFd(vmm.process.pid)
        except MissingError as exc:
            os._exit(0 if exc.hint and "no permission" in str(exc) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
