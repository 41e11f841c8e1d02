# SPDX-License-Identifier: BSD-2-Clause
"""vpt attach and detach on a QEMU that nobody manages, by its QMP socket."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.libvirt import Vpt
from support.waiting import until
from vpt.daemon.client import Client
from vpt.guest import Guest, Image, ping
from vpt.qemu import find_qemu
from vpt.qemu.qmp import QmpSession, listener_pid

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*")]

PORTS = [part for i in range(3) for part in ("-device", f"pcie-root-port,id=rp{i},chassis={i},slot={i}")]


@pytest.fixture(scope="module")
def boot(image: Image) -> Iterator[Callable[..., tuple[Guest, str]]]:
    """boot(name, extra): a guest, and the path of its QMP socket. wait: until the guest is ready."""
    folder = Path(tempfile.mkdtemp(prefix="vpt-qmp-"))
    with ExitStack() as stack:

        def start(name: str, *extra: str, wait: bool = True) -> tuple[Guest, str]:
            qmp = folder / f"{name}.qmp"
            guest = Guest(image, find_qemu(), name=name, accel="tcg", qmp=qmp, extra=extra)
            stack.enter_context(guest)
            until(lambda: listener_pid(qmp), "QEMU's QMP socket")
            return (guest.wait_ready() if wait else guest), str(qmp)

        yield start
    shutil.rmtree(folder)


def network(guest: Guest, number: int) -> None:
    guest.wait_until("[ -e /sys/class/net/eth0 ]", 20, "a new interface")
    guest.run(f"ip addr add 10.8.0.{number}/24 dev eth0; ip link set eth0 up")
    guest.wait_until("grep -q 1 /sys/class/net/eth0/carrier", 10, "a carrier")


def leftovers(qmp: str) -> list[str]:
    """What of ours QEMU still has."""
    with QmpSession(Path(qmp)) as qemu:
        devices = [item["name"] for item in qemu.execute("qom-list", path="/machine/peripheral")]
        chardevs = [item["label"] for item in qemu.execute("query-chardev")]
        return [name for name in [*devices, *chardevs] if name.startswith("vpt-") and name != "vpt-spent"]


def test_both_kinds_with_traffic_and_nothing_is_left(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    guest, qmp = boot("plain", *PORTS)
    other, other_qmp = boot("other", *PORTS)
    assert vpt("attach", other_qmp, "--switch", "sw0", "--kind", "passthrough")[0] == 0
    network(other, 2)
    for kind in ("vhost-user", "passthrough"):
        more = ("--packed",) if kind == "vhost-user" else ()
        code, out, err = vpt("attach", qmp, "--switch", "sw0", "--kind", kind, "--port", "p1", *more)
        assert (code, err.count("warning:")) == (0, len(more)), out + err
        assert out.endswith("into sw0: live\n")
        network(guest, 1)
        assert ping(guest, "10.8.0.2", count=10).lost == 0
        if more:
            features = int(vptd.call("port.show", name="p1")["features"].split()[-1], 16)
            assert features >> 34 & 1, "VIRTIO_F_RING_PACKED"
        code, _, err = vpt("detach", qmp)
        assert (code, err) == (0, "")
        guest.wait_until("[ ! -e /sys/class/net/eth0 ]", 10, "the interface to go")
        assert leftovers(qmp) == []
    code, _, err = vpt("attach", qmp, "--switch", "sw0")
    assert (code, "without KVM, QEMU would crash" in err) == (1, True)
    assert vpt("detach", other_qmp, "other")[0] == 0
    assert vptd.call("port.list")["ports"] == []


def test_what_would_be_sent_is_printed_and_not_sent(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    _, qmp = boot("asked", *PORTS, wait=False)
    code, out, err = vpt("attach", qmp, "--switch", "sw0", "--port", "p1", "--print-diff")
    assert (code, err) == (0, "")
    commands = [json.loads(line) for line in out.splitlines()]
    assert [line["execute"] for line in commands] == ["chardev-add", "netdev_add", "device_add"]
    assert leftovers(qmp) == []
    assert vptd.call("port.list")["ports"] == []
    with QmpSession(Path(qmp)) as qemu:
        vptd.call("port.add", switch="sw0", name="p1", kind="vhost-user")
        for line in commands:
            qemu.execute(line["execute"], **line["arguments"])
    assert "vpt-p1" in leftovers(qmp), "QEMU takes them as they were printed"
    vptd.call("port.del", name="p1")


def test_a_vm_that_has_ended_leaves_a_port_that_can_still_be_named_by_it(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    guest, qmp = boot("ended", *PORTS, wait=False)
    assert vpt("attach", qmp, "--switch", "sw0")[0] == 0
    assert vptd.call("port.show", name="ended")["owner"] == f"qmp:{qmp}"
    guest.kill()
    code, _, err = vpt("detach", qmp, "other")
    assert (code, "no port 'other'" in err) == (1, True)
    code, out, _ = vpt("detach", qmp)
    assert (code, "the VM has ended; the port is deleted" in out) == (0, True)
    assert vptd.call("port.list")["ports"] == []
    assert vpt("detach", qmp)[0] == 1


def test_what_can_not_be_leaves_nothing(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client, tmp_path: Path
) -> None:
    _, qmp = boot("bare", wait=False)
    code, _, err = vpt("attach", qmp, "--switch", "sw0")
    assert (code, "no spare pcie-root-port" in err, "hint:" in err) == (1, True, True)
    code, _, err = vpt("attach", qmp, "--switch", "sw0", "--config")
    assert (code, "no configuration" in err) == (2, True)
    code, _, err = vpt("attach", qmp, "--switch", "nosuch")
    assert (code, "no switch 'nosuch'" in err) == (1, True), "what was asked for comes before the VM's state"
    code, _, err = vpt("detach", qmp)
    assert (code, "has no vpt port" in err) == (1, True)
    code, _, err = vpt("attach", str(tmp_path / "none.qmp"), "--switch", "sw0")
    assert (code, "no such QMP socket" in err) == (1, True)
    with QmpSession(Path(qmp)) as qemu:
        qemu.execute("stop")
    code, _, err = vpt("attach", qmp, "--switch", "sw0")
    assert (code, "is paused" in err) == (1, True)
    assert leftovers(qmp) == []
    assert vptd.call("port.list")["ports"] == []


def test_a_device_that_qemu_refuses_takes_its_port_along(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    _, qmp = boot("full", *PORTS, wait=False)
    with QmpSession(Path(qmp)) as qemu:
        # The id of the port's network back-end is taken, and the chardev was made before it.
        qemu.execute("netdev_add", type="hubport", id="vpt-p1-net", hubid=0)
    code, _, err = vpt("attach", qmp, "--switch", "sw0", "--port", "p1")
    assert (code, "QEMU refused netdev_add" in err) == (1, True)
    assert leftovers(qmp) == []
    assert vptd.call("port.list")["ports"] == []
