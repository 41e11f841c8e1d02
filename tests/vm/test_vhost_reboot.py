# SPDX-License-Identifier: BSD-2-Clause
"""L3: a guest on a vhost-user port that reboots under traffic: stock QEMU, the kernel's own virtio-net."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.vptd import wait_for
from vpt.daemon.client import Client
from vpt.daemon.launch import launch, shut_down
from vpt.daemon.runtime import RuntimePaths, locate
from vpt.guest import Guest, ping
from vpt.qemu import VhostUser

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

MACS = {"vm1": "52:54:00:76:70:11", "vm2": "52:54:00:76:70:12"}
START_S = 30.0
REBOOTS = 2
REBOOT_S = 150.0  # an emulated guest on a host with other things to do
CALM = 100  # looks, 10 ms apart


@pytest.fixture(scope="module")
def paths() -> Iterator[RuntimePaths]:
    folder = tempfile.mkdtemp(prefix="vpt-reboot-")
    paths = locate(folder)
    launch(paths, [], START_S)
    yield paths
    shut_down(paths, keep=False, timeout=START_S)
    shutil.rmtree(folder, ignore_errors=True)


def bring_up(guest: Guest, number: int) -> None:
    guest.run(f"ip addr add 10.0.0.{number}/24 dev eth0 && ip link set eth0 up")
    guest.wait_until("grep -q 1 /sys/class/net/eth0/carrier", 20, "a carrier")


@pytest.fixture(scope="module")
def guests(paths: RuntimePaths, boot: Callable[..., Guest]) -> SimpleNamespace:
    with Client(paths.control) as vptd:
        vptd.call("switch.add", name="sw0")
        for name, mac in MACS.items():
            vptd.call("port.add", name=name, switch="sw0", kind="vhost-user", mac=mac)
    found = {name: boot(name, VhostUser(paths.port_socket(name), mac)) for name, mac in MACS.items()}
    for number, guest in enumerate(found.values(), 1):
        guest.wait_ready()
        bring_up(guest, number)
    return SimpleNamespace(**found)


def show(paths: RuntimePaths, name: str) -> dict[str, object]:
    with Client(paths.control) as vptd:
        return dict(vptd.call("port.show", name=name))


def open_fds(pid: int) -> int:
    """Once they stay the same for a second: connections end, and QEMU swaps eventfds."""
    looks: list[int] = []

    def still() -> bool:
        looks.append(len(os.listdir(f"/proc/{pid}/fd")))
        return len(looks) > CALM and len(set(looks[-CALM:])) == 1

    wait_for(still, "vptd's open files to stay the same")
    return looks[-1]


@pytest.mark.parametrize("round_", range(REBOOTS))
def test_l3_a_guest_that_reboots_under_traffic_is_reached_again(
    paths: RuntimePaths, guests: SimpleNamespace, round_: int
) -> None:
    """Its neighbour goes on sending to it meanwhile; the port is as it was, with nothing left over."""
    assert ping(guests.vm2, "10.0.0.1", count=5).lost == 0
    with Client(paths.control) as vptd:
        pid = vptd.call("daemon.status")["pid"]
    before = open_fds(pid)
    job = guests.vm2.spawn("ping -i 0.2 10.0.0.1")
    guests.vm1.reboot(REBOOT_S)
    bring_up(guests.vm1, 1)
    assert ping(guests.vm1, "10.0.0.2", count=10).lost == 0
    assert ping(guests.vm2, "10.0.0.1", count=10).lost == 0
    job.kill()
    port = show(paths, "vm1")
    assert port["state"] == "up"
    counters = port["counters"]
    assert isinstance(counters, dict)
    assert not any(n for name, n in counters.items() if name.startswith("broken"))
    faults = show(paths, "vm1")["transport"]["counters"]  # type: ignore[index]
    assert faults.get("protocol_errors", 0) == faults.get("refused", 0) == 0
    assert faults["connections"] == 1, "the same QEMU all the time"
    assert open_fds(pid) == before
    assert Path(paths.log).read_text().count("dropped") == 0
