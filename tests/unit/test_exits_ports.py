# SPDX-License-Identifier: BSD-2-Clause
"""Kicks of a VM are those of its own ports, never of all that vptd has."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.vptd import Vptd
from support.waiting import until
from vpt.errors import GuestError, MissingError, NotFoundError, UsageError
from vpt.exits.model import Tier
from vpt.exits.ports import ports_of, ports_of_others
from vpt.exits.session import open_session
from vpt.exits.sources.vpt_counters import VptCounters
from vpt.exits.target import Vm

OTHER = "libvirt:system:00000000-0000-0000-0000-000000000001"


class _Domain:
    uuid = OTHER.rpartition(":")[2]


class _Qmp:
    path = Path("/run/vm1.qmp")


def vm(pid: int | None, **handles: object) -> Vm:
    return Vm("vm1", Tier.KVM, "because", pid=pid, **handles)  # type: ignore[arg-type]


@pytest.fixture
def daemon(vptd: Vptd) -> Iterator[Vptd]:
    """Ports a and b, a connected to this process, c made for another VM; d and e are no VM's."""
    vptd.start()
    vptd.call("switch.add", name="sw0")
    vptd.call("port.add", switch="sw0", name="a", kind="vhost-user")
    vptd.call("port.add", switch="sw0", name="b", kind="passthrough")
    vptd.call("port.add", switch="sw0", name="c", kind="vhost-user", owner=OTHER)
    vptd.call("port.add", switch="sw0", name="d", kind="null")
    vptd.call("port.add", switch="sw0", name="e", kind="app")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as front_end:
        front_end.connect(vptd.socket("a"))
        until(lambda: vptd.call("port.show", name="a")["transport"]["connected"], "vptd to see the front-end")
        yield vptd


def test_a_vms_ports_are_those_that_its_process_is_connected_to(daemon: Vptd) -> None:
    assert ports_of(vm(os.getpid()), daemon.paths.stats) == ("a",)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guest:
        guest.connect(daemon.socket("b"))
        until(lambda: daemon.call("port.show", name="b")["transport"]["connected"], "vptd to see the guest")
        assert ports_of(vm(os.getpid()), daemon.paths.stats) == ("a", "b")


def test_a_port_made_for_a_vm_is_its_own_even_if_its_process_is_unknown(daemon: Vptd) -> None:
    assert ports_of(vm(None, domain=_Domain()), daemon.paths.stats) == ("c",)
    daemon.call("port.add", switch="sw0", name="f", kind="vhost-user", owner="qmp:/run/vm1.qmp")
    assert ports_of(vm(None, qmp=_Qmp()), daemon.paths.stats) == ("f",)


def test_a_vm_without_a_port_gets_none_of_the_others(daemon: Vptd) -> None:
    with pytest.raises(NotFoundError, match="no port of vptd belongs to vm1") as caught:
        ports_of(vm(1), daemon.paths.stats)
    assert f"vpt --runtime-dir {daemon.paths.runtime} ls shows the ports" in (caught.value.hint or "")
    assert "--port" in (caught.value.hint or "")


def test_where_whose_the_ports_are_is_unknown_they_have_to_be_named(daemon: Vptd) -> None:
    with pytest.raises(UsageError, match="ports a, b are vm1's can't be known") as caught:
        ports_of(vm(None), daemon.paths.stats)
    assert "--port a" in (caught.value.hint or "")
    daemon.call("port.del", name="b")
    assert ports_of(vm(None), daemon.paths.stats) == ("a",), "there is one that can be it"


def test_counters_without_a_vptd_that_answers_do_not_tell_whose_ports_they_are(
    daemon: Vptd, tmp_path: Path
) -> None:
    alone = shutil.copy(daemon.paths.stats, tmp_path / "stats")
    with pytest.raises(UsageError, match="ports a, b, c are"):
        ports_of(vm(os.getpid()), alone)
    daemon.call("port.del", name="b")
    daemon.call("port.del", name="c")
    alone = shutil.copy(daemon.paths.stats, tmp_path / "stats")
    assert ports_of(vm(os.getpid()), alone) == ("a",)


def test_without_counters_there_is_no_port_to_choose(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is vptd running"):
        ports_of(vm(1), tmp_path / "stats")


def test_a_named_port_of_another_vm_is_told_from_the_vms_own_and_from_nobodys(daemon: Vptd) -> None:
    named = ("a", "b", "d", "e", "absent")
    assert ports_of_others(vm(os.getpid()), daemon.paths.stats, named) == {}
    other = {"a": f"process {os.getpid()} is connected to it"}
    assert ports_of_others(vm(1), daemon.paths.stats, named) == other
    assert ports_of_others(vm(None), daemon.paths.stats, named) == {}, "nothing is known, nothing is said"
    domain = _Domain()
    assert ports_of_others(vm(None, domain=domain), daemon.paths.stats, ("c",)) == {}
    domain.uuid = "00000000-0000-0000-0000-000000000002"
    made_for = {"c": f"it was made for {OTHER}"}
    assert ports_of_others(vm(None, domain=domain), daemon.paths.stats, ("c",)) == made_for


def test_without_a_vptd_that_answers_no_port_is_known_to_be_anothers(daemon: Vptd, tmp_path: Path) -> None:
    alone = shutil.copy(daemon.paths.stats, tmp_path / "stats")
    assert ports_of_others(vm(1), alone, ("a",)) == {}


def test_kicks_of_another_vms_port_are_refused_and_its_packets_are_divided_by_with_a_note(
    daemon: Vptd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpt.exits.session.open_vm", lambda *_: vm(1))
    with (
        pytest.raises(UsageError, match="port a is not vm1's: process") as caught,
        open_session("vm1", "vpt", None, daemon.paths.stats, ("a",)),
    ):
        pass
    assert f"vpt --runtime-dir {daemon.paths.runtime} ls shows them" in (caught.value.hint or "")

    monkeypatch.setattr(
        "vpt.exits.session.open_source", lambda *_: VptCounters(daemon.paths.stats, ("a", "d"))
    )
    with open_session("vm1", "qmp", None, daemon.paths.stats, ("a", "d")) as session:
        (note,) = session.notes
    assert note.startswith("port a is not vm1's: process")
    assert "divided" in note


@pytest.mark.parametrize("end", [Vptd.kill, Vptd.stop], ids=["killed", "stopped"])
def test_counters_of_a_vptd_that_ended_are_not_read_on(daemon: Vptd, end: Callable[[Vptd], object]) -> None:
    """kill -9 leaves the file behind, and what is in it stands still."""
    with VptCounters(daemon.paths.stats, ("d",)) as source:
        assert source.read()
        end(daemon)
        with pytest.raises(GuestError, match="vptd ended") as caught:
            source.read()
        assert "daemon start" in (caught.value.hint or "")
        daemon.start()
        with pytest.raises(GuestError, match="vptd was started again"):
            source.read()
