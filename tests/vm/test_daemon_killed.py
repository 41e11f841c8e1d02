# SPDX-License-Identifier: BSD-2-Clause
"""kill -9 of vptd under a running ping: both guests keep their devices, and the ping goes on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.waiting import PATIENCE_S, until
from vpt.daemon.client import Client
from vpt.daemon.launch import launch
from vpt.daemon.runtime import RuntimePaths
from vpt.dataplane import vec_count
from vpt.guest import Guest
from vpt.qemu import Ivshmem, VhostUser

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(240),
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

MACS = {"vm1": "52:54:00:76:70:01", "vm2": "52:54:00:76:70:02"}
KILLS = 3


@pytest.fixture(scope="module")
def guests(paths: RuntimePaths, boot: Callable[..., Guest]) -> SimpleNamespace:
    with Client(paths.control) as vptd:
        vptd.call("switch.add", name="sw0")
        sockets = {
            name: Path(vptd.call("port.add", name=name, switch="sw0", kind=kind, mac=MACS[name])["socket"])
            for name, kind in (("vm1", "vhost-user"), ("vm2", "passthrough"))
        }
    vm1 = boot("vm1", VhostUser(sockets["vm1"], MACS["vm1"]))
    vm2 = boot("vm2", Ivshmem(sockets["vm2"], vec_count(1)))
    for number, guest in enumerate((vm1, vm2), 1):
        guest.wait_ready()
        guest.run(f"ip addr add 10.0.0.{number}/24 dev eth0 && ip link set eth0 up")
        guest.wait_until("grep -q 1 /sys/class/net/eth0/carrier", 20, "a carrier")
    return SimpleNamespace(vm1=vm1, vm2=vm2)


def answers(text: str) -> int:
    return len(re.findall(r"time=", text))


@pytest.mark.parametrize("round_", range(KILLS))
def test_a_ping_survives_kill_9_of_the_daemon(
    paths: RuntimePaths, guests: SimpleNamespace, round_: int
) -> None:
    """The passthrough guest's rings are where they were; QEMU's vhost-user connects again by itself."""
    job = guests.vm2.spawn("ping -i 0.2 10.0.0.1")
    until(lambda: answers(job.output()) >= 3, "the ping to run", 30)
    with Client(paths.control) as vptd:
        status = vptd.call("daemon.status")
    os.kill(status["pid"], signal.SIGKILL)
    again = launch(paths, [], PATIENCE_S)
    assert again.new
    assert again.status["pid"] != status["pid"]
    assert again.status["keeper"]["pid"] == status["keeper"]["pid"], "the keeper was there all the time"
    assert again.status["ports"] == 2
    before = answers(job.output())
    until(lambda: answers(job.output()) >= before + 10, "ten more answers", 40)
    job.kill()
    with Client(paths.control) as vptd:
        states = {port["name"]: port["state"] for port in vptd.call("port.list")["ports"]}
    assert states == {"vm1": "up", "vm2": "up"}


def test_the_passthrough_driver_never_started_over(guests: SimpleNamespace) -> None:
    """A resumed region keeps its generation, so the driver has nothing to do, and says nothing."""
    log = guests.vm2.run("dmesg | grep vpt_net").output
    assert "features" in log, "the line that it prints when it binds"
    assert "started over" not in log
    assert "host broke" not in log
