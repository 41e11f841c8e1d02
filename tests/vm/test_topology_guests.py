# SPDX-License-Identifier: BSD-2-Clause
"""The worked examples of docs/examples, applied by `vpt apply`, with guests on their ports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.vptd import Vptd, run_vpt
from vpt.dataplane import vec_count
from vpt.guest import Guest, Image, ping
from vpt.qemu import Ivshmem, Nic, Qemu, VhostUser

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
LINK_S = 20


@pytest.fixture
def lab() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def plug(lab: Vptd, image: Image, qemu: Qemu, accel: str) -> Iterator[Callable[..., Guest]]:
    """plug(name, *ports): a guest with a device on each of these ports, in this order."""
    with contextlib.ExitStack() as stack:

        def start(name: str, *ports: str) -> Guest:
            nics = [_nic(lab.call("port.show", name=port)) for port in ports]
            guest = Guest(image, qemu, name=name, accel=accel, nics=nics)  # type: ignore[arg-type]
            return stack.enter_context(guest)

        yield start


def _nic(port: dict) -> Nic:
    if port["kind"] == "passthrough":
        return Ivshmem(Path(port["socket"]), vec_count(port["pairs"]))
    return VhostUser(Path(port["socket"]), port["mac"])


def apply(lab: Vptd, example: str, *options: str) -> str:
    done = run_vpt(lab.paths.runtime, "apply", str(EXAMPLES / example), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def configure(guest: Guest, *addresses: str) -> None:
    """One address per device, and a carrier on each."""
    guest.wait_ready()
    for dev, address in enumerate(addresses):
        guest.run(f"ip addr add {address} dev eth{dev} && ip link set eth{dev} up")
        guest.wait_until(f"grep -q 1 /sys/class/net/eth{dev}/carrier", LINK_S, "a carrier")


def test_two_vms_reach_each_other_and_a_second_apply_leaves_them_alone(
    lab: Vptd, plug: Callable[..., Guest]
) -> None:
    apply(lab, "two-vms.yaml")
    vm1, vm2 = plug("vm1", "vm1"), plug("vm2", "vm2")
    configure(vm1, "10.0.1.1/24")
    configure(vm2, "10.0.1.2/24")
    assert ping(vm1, "10.0.1.2", count=10).lost == 0
    assert apply(lab, "two-vms.yaml", "--prune") == "nothing to do\n"
    assert ping(vm2, "10.0.1.1", count=10).lost == 0


def test_a_router_joins_two_networks(lab: Vptd, plug: Callable[..., Guest]) -> None:
    """Each network is a switch, so nothing but the router could have carried the ping."""
    apply(lab, "router.yaml")
    router = plug("router", "router-office", "router-servers")
    desk, web = plug("desk", "desk"), plug("web", "web")
    configure(router, "10.0.2.1/24", "10.0.3.1/24")
    configure(desk, "10.0.2.2/24")
    configure(web, "10.0.3.2/24")
    router.run("sysctl -qw net.ipv4.ip_forward=1")
    desk.run("ip route add default via 10.0.2.1")
    web.run("ip route add default via 10.0.3.1")
    assert ping(desk, "10.0.3.2", count=10).lost == 0
    for switch, port in (("office", "router-office"), ("servers", "router-servers")):
        macs = {entry["port"] for entry in lab.call("switch.macs", name=switch)["macs"]}
        assert macs == {port, "desk" if switch == "office" else "web"}


def test_two_of_the_ten_vms_reach_each_other(lab: Vptd, plug: Callable[..., Guest]) -> None:
    """Ten ports; two guests are enough to see that any two of them are plugged into what the file says."""
    apply(lab, "ten-vms.yaml")
    assert len(lab.call("port.list")["ports"]) == 10
    first, last = plug("vm1", "vm1"), plug("vm10", "vm10")
    configure(first, "10.0.4.1/24")
    configure(last, "10.0.4.10/24")
    assert ping(first, "10.0.4.10", count=10).lost == 0
    assert first.run("cat /sys/class/net/eth0/address").output.strip() == "52:54:00:00:03:01"
    assert last.run("cat /sys/class/net/eth0/address").output.strip() == "52:54:00:00:03:0a"
