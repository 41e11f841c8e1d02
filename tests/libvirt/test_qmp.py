# SPDX-License-Identifier: BSD-2-Clause
"""vpt attach and detach on a QEMU that nobody manages, by its QMP socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.libvirt import Vpt
from support.waiting import until
from vpt.daemon.client import Client
from vpt.daemon.runtime import locate
from vpt.guest import Guest, Image, ping
from vpt.libvirt_plugin import qmp as plain
from vpt.qemu import find_qemu
from vpt.qemu import qmp as qemu_qmp
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
            # It is heard before all of QEMU is made. Descriptors that are open only for that would keep low
            # numbers from a connection, and a device's eventfd could get one. See attach.
            with QmpSession(qmp) as qemu:
                qemu.execute("query-status")
            return (guest.wait_ready() if wait else guest), str(qmp)

        yield start
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _no_port_stays(vptd: Client) -> Iterator[None]:
    """One test that fails should not fail all the others."""
    yield
    for port in vptd.call("port.list")["ports"]:
        vptd.call("port.del", name=port["name"])


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


def of_ports(qmp: str) -> list[str]:
    """The same, without what QEMU remembers of a detach that was given up."""
    return [name for name in leftovers(qmp) if "-left" not in name]


def is_marked(qmp: str) -> bool:
    """As one that could not be mended."""
    with QmpSession(Path(qmp)) as qemu:
        return "vpt-spent" in [item["label"] for item in qemu.execute("query-chardev")]


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
    assert vpt("attach", qmp, "--switch", "sw0")[0] == 0
    network(guest, 1)
    assert ping(guest, "10.8.0.2", count=10).lost == 0
    assert vpt("detach", qmp)[0] == 0
    assert vpt("detach", other_qmp, "other")[0] == 0
    assert vptd.call("port.list")["ports"] == []


def test_what_would_be_sent_is_printed_and_not_sent(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    guest, qmp = boot("asked", *PORTS, wait=False)
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
    guest.kill()


@pytest.mark.parametrize(("folder", "taken"), [("/var/tmp", False), ("/dev/shm", True)])
def test_memory_in_a_file_on_a_disk_is_refused(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, folder: str, taken: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as there:
        ram = f"memory-backend-file,id=more,size=1M,share=on,mem-path={there}/ram"
        _, qmp = boot(f"file{taken:d}", *PORTS, "-object", ram, wait=False)
        code, _, err = vpt("attach", qmp, "--switch", "sw0", "--print-diff")
        said = (f"in a file on a disk, {there}/ram" in err, "memory-backend-memfd" in err)
        assert (code, *said) == (0 if taken else 1, not taken, not taken), err
        assert vpt("attach", qmp, "--switch", "sw0", "--kind", "passthrough", "--print-diff")[0] == 0


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


@pytest.mark.parametrize(
    ("kind", "seen"), [("vhost-user", True), ("passthrough", True), ("passthrough", False)]
)
def test_what_a_guest_lets_go_of_after_the_time_out_is_taken_out_by_a_second_detach(
    boot: Callable[..., tuple[Guest, str]],
    vpt: Vpt,
    vptd: Client,
    runtime: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    seen: bool,
) -> None:
    """Firmware never lets go; a reset of the machine does. seen: QEMU's descriptors can be looked at."""
    guest, qmp = boot(f"late-{kind}{seen:d}", *PORTS, wait=False)
    if not seen:
        monkeypatch.setattr(plain, "eventfds", lambda *_pids: [])
    named = ("attach", qmp, "--switch", "sw0", "--kind", kind, "--port", "p1")
    assert vpt(*named)[0] == 0
    monkeypatch.setattr(plain, "_DEVICE_S", 0.5)
    code, _, err = vpt("detach", qmp)
    assert (code, "did not let go of vpt-p1 within" in err, "so the port stays" in err) == (1, True, True)
    with QmpSession(Path(qmp)) as qemu:
        qemu.execute("system_reset")
    until(lambda: of_ports(qmp) == ["vpt-p1-chr"], "the device to go")
    code, _, err = vpt(*named)
    assert (code, f"vpt --runtime-dir {runtime} detach {qmp} p1" in err) == (1, True)
    code, _, err = vpt("attach", qmp, "--switch", "sw0", "--print-diff")
    assert (code, "without KVM, QEMU could crash" in err) == (int(not seen), not seen)
    with QmpSession(Path(qmp)) as qemu:
        # No guest is asked for anything any more.
        qemu.execute("stop")
    assert vpt("detach", qmp, "p2")[2].endswith("hint: its vpt ports: p1\n")
    code, out, err = vpt("detach", qmp)
    assert (code, "live; the port is deleted" in out) == (0, True), err
    assert leftovers(qmp) == []
    assert vptd.call("port.list")["ports"] == []
    with QmpSession(Path(qmp)) as qemu:
        qemu.execute("cont")
    assert is_marked(qmp) == (not seen)
    # QEMU frees a device, and its name, when all vCPUs have been seen somewhere else.
    until(lambda: vpt(*named)[0] == 0, "the name to be free again")
    # Or it would connect to the next test's port of that name.
    guest.kill()


def test_a_port_that_a_guest_lets_go_of_late_keeps_the_next_from_nothing(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """attach has QEMU forget the eventfds of the one that has gone; else one beside vhost-user is refused."""
    guest, qmp = boot("after", *PORTS, wait=False)
    assert vpt("attach", qmp, "--switch", "sw0", "--kind", "passthrough", "--port", "p1")[0] == 0
    monkeypatch.setattr(plain, "_DEVICE_S", 0.5)
    assert vpt("detach", qmp)[0] == 1
    with QmpSession(Path(qmp)) as qemu:
        qemu.execute("system_reset")
    until(lambda: of_ports(qmp) == ["vpt-p1-chr"], "the device to go")
    for name in ("p2", "p3"):
        code, out, err = vpt("attach", qmp, "--switch", "sw0", "--port", name)
        assert (code, "plugs" in out, is_marked(qmp)) == (0, True, False), err
    assert "vpt-p1-left" in leftovers(qmp), "seen to"
    assert vpt("detach", qmp, "p1")[0] == 0
    assert [name for name in leftovers(qmp) if "p1" in name] == []
    assert [port["name"] for port in vptd.call("port.list")["ports"]] == ["p2", "p3"]
    # Or it would connect to the next test's ports of these names.
    guest.kill()


def test_the_rest_of_a_port_that_vptd_has_lost_is_taken_out(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, qmp = boot("lost", *PORTS, wait=False)
    assert vpt("attach", qmp, "--switch", "sw0")[0] == 0
    monkeypatch.setattr(plain, "_DEVICE_S", 0.5)
    assert vpt("detach", qmp)[0] == 1
    with QmpSession(Path(qmp)) as qemu:
        qemu.execute("system_reset")
    until(lambda: of_ports(qmp) == ["vpt-lost-chr"], "the device to go")
    vptd.call("port.del", name="lost")
    out = vpt("attach", qmp, "--switch", "sw0", "--print-diff")[1]
    assert ("vpt-lost-2" in out, "vpt-lost-chr" in out) == (True, False), "that name is taken"
    assert vpt("detach", qmp)[0] == 0
    assert leftovers(qmp) == []


def test_a_qemu_that_ends_while_its_guest_is_waited_for_has_ended(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, qmp = boot("dying", *PORTS, wait=False)
    assert vpt("attach", qmp, "--switch", "sw0")[0] == 0
    listening = QmpSession.listening

    @contextmanager
    def killed(session: QmpSession, *names: str) -> Iterator[Callable[[float], dict[str, Any] | None]]:
        with listening(session, *names) as take:

            def waits(seconds: float) -> dict[str, Any] | None:
                guest.kill()
                event = take(seconds)
                assert event is not None, "waited for a QEMU that is gone"
                return event

            yield waits

    monkeypatch.setattr(QmpSession, "listening", killed)
    code, out, err = vpt("detach", qmp)
    assert (code, out) == (0, f"dying is unplugged from {qmp}: the VM has ended; the port is deleted\n"), err
    assert vptd.call("port.list")["ports"] == []


def test_a_port_that_was_made_for_no_vm_is_plugged_in_as_it_is_and_stays(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client, runtime: Path
) -> None:
    guest, qmp = boot("common", *PORTS)
    made = vptd.call("port.add", switch="sw0", name="p1", kind="vhost-user", mac="52:54:00:00:00:71")
    named = ("attach", qmp, "--switch", "sw0", "--port", "p1")
    code, _, err = vpt(*named, "--mac", "52:54:00:00:00:72")
    assert (code, "with other settings: mac 52:54:00:00:00:71" in err) == (1, True)
    code, out, err = vpt(*named)
    assert (code, "p1 (vhost-user, 52:54:00:00:00:71) plugs" in out) == (0, True), err
    code, out, err = vpt(*named, "--mac", "52:54:00:00:00:71")
    assert (code, "p1 (vhost-user, 52:54:00:00:00:71) already plugs" in out) == (0, True), err
    assert vpt(*named, "--print-diff") == (0, "", "")
    for other in (("--mac", "52:54:00:00:00:72"), ("--kind", "passthrough"), ("--packed",)):
        code, _, err = vpt(*named, *other)
        assert (code, "has a port 'p1' already" in err) == (1, True), err
    network(guest, 1)
    code, out, err = vpt("detach", qmp)
    assert (code, err) == (0, "")
    assert f"the port is still there: it was not made for {qmp}" in out
    assert f"vpt --runtime-dir {runtime} port del p1" in out
    assert leftovers(qmp) == []
    assert vptd.call("port.show", name="p1")["socket"] == made["socket"]
    vptd.call("port.del", name="p1")


def test_what_fails_leaves_a_port_that_was_made_for_no_vm(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    _, qmp = boot("keeps", *PORTS, wait=False)
    vptd.call("port.add", switch="sw0", name="p1", kind="vhost-user")
    with QmpSession(Path(qmp)) as qemu:
        qemu.execute("netdev_add", type="hubport", id="vpt-p1-net", hubid=0)
    code, _, err = vpt("attach", qmp, "--switch", "sw0", "--port", "p1")
    assert (code, "QEMU refused netdev_add" in err) == (1, True)
    assert leftovers(qmp) == []
    assert vptd.call("port.show", name="p1")["owner"] is None
    vptd.call("port.del", name="p1")


def test_a_port_that_was_made_for_another_vm_stays(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    """Plugged in by hand, with the commands that --print-diff shows."""
    guest, qmp = boot("guest", *PORTS)
    named = ("attach", qmp, "--switch", "sw0", "--port", "p1")
    commands = vpt(*named, "--print-diff")[1].splitlines()
    vptd.call("port.add", switch="sw0", name="p1", kind="vhost-user", owner="qmp:/run/other.qmp")
    code, _, err = vpt(*named)
    assert (code, "made for another VM" in err) == (1, True)
    with QmpSession(Path(qmp)) as qemu:
        for line in map(json.loads, commands):
            qemu.execute(line["execute"], **line["arguments"])
    guest.wait_until("[ -e /sys/class/net/eth0 ]", 20, "a new interface")
    code, out, err = vpt("detach", qmp)
    assert (code, err) == (0, "")
    assert f"the port is still there: it was not made for {qmp}" in out
    assert leftovers(qmp) == []
    assert vptd.call("port.show", name="p1")["owner"] == "qmp:/run/other.qmp"
    vptd.call("port.del", name="p1")


def test_whatever_path_leads_to_the_socket_the_port_is_the_vms(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client, tmp_path: Path
) -> None:
    guest, qmp = boot("paths", *PORTS, wait=False)
    (tmp_path / "link").symlink_to(Path(qmp).parent)
    assert vpt("attach", f"{tmp_path}/link/paths.qmp", "--switch", "sw0")[0] == 0
    guest.kill()
    assert vpt("detach", qmp)[0] == 0
    assert vptd.call("port.list")["ports"] == []


def test_a_stopped_qemu_is_not_taken_for_one_that_has_ended(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who connects is put in a queue; once that is full, the kernel lets nobody in."""
    guest, qmp = boot("stopped", *PORTS, wait=False)
    assert vpt("attach", qmp, "--switch", "sw0")[0] == 0
    before = leftovers(qmp), vptd.call("port.list")["ports"]
    monkeypatch.setattr(qemu_qmp, "_STEP_S", 0.5)
    os.kill(guest.pid, signal.SIGSTOP)
    for number in range(5):
        code, _, err = vpt("detach", qmp) if number % 2 else vpt("attach", qmp, "--switch", "sw0")
        assert (code, "no greeting within" in err, "kill -CONT" in err) == (1, True, True), err
    os.kill(guest.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert (leftovers(qmp), vptd.call("port.list")["ports"]) == before
    vptd.call("port.del", name="stopped")


@pytest.mark.parametrize("command", ["chardev-add", "netdev_add", "device_add"])
def test_what_a_qemu_did_not_answer_is_named_and_its_port_stays_for_it(
    boot: Callable[..., tuple[Guest, str]],
    vpt: Vpt,
    vptd: Client,
    runtime: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """It does what it was told once it goes on, and would hang in netdev_add if the port had gone."""
    guest, qmp = boot(f"mute-{command}", *PORTS, wait=False)
    execute = QmpSession.execute

    def stops(session: QmpSession, name: str, **arguments: Any) -> Any:
        if name == command:
            os.kill(guest.pid, signal.SIGSTOP)
            patch.setattr(qemu_qmp, "_STEP_S", 0.5)
        return execute(session, name, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(QmpSession, "execute", stops)
        code, _, err = vpt("attach", qmp, "--switch", "sw0", "--port", "p1")
    assert (code, f"QEMU did not answer {command} within" in err) == (1, True), err
    assert f"vpt --runtime-dir {runtime} detach {qmp} p1" in err.partition("hint:")[2]
    os.kill(guest.pid, signal.SIGCONT)
    monkeypatch.setattr(plain, "_DEVICE_S", 0.5)
    if vpt("detach", qmp)[0]:
        # Firmware never lets go of a device; a reset of the machine does.
        with QmpSession(Path(qmp)) as qemu:
            qemu.execute("system_reset")
        until(lambda: "vpt-p1" not in leftovers(qmp), "the device to go")
        assert vpt("detach", qmp)[0] == 0
    assert leftovers(qmp) == []
    assert vptd.call("port.list")["ports"] == []


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


def test_what_libvirt_would_not_take_is_not_given_to_qemu_either(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    _, qmp = boot("strict", *PORTS, "-device", "virtio-net-pci,mac=52:54:00:00:00:AB,romfile=", wait=False)
    code, _, err = vpt("attach", qmp, "--switch", "sw0", "--mac", "52:54:00:00:00:ab")
    assert (code, "two devices with the MAC address" in err, "--mac" in err) == (1, True, True)
    code, _, err = vpt("attach", qmp, "--switch", "sw0", "--kind", "passthrough", "--slots", "1024")
    assert (code, "do not fit the 2 MiB" in err, "--slots 256" in err) == (1, True, True), err
    assert leftovers(qmp) == []
    assert vptd.call("port.list")["ports"] == []


@pytest.mark.parametrize("says", [b"hello\r\nyou\r\n", b'{"a": 1}\n', b"\x00\n\xff"])
def test_another_kind_of_socket_is_named_in_one_line(vpt: Vpt, tmp_path: Path, says: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / "other.qmp"))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as peer:
                peer.send(says)
                peer.recv(1)

        served = pool.submit(serve)
        code, _, err = vpt("attach", f"{tmp_path}/other.qmp", "--switch", "sw0")
        served.result()
    assert (code, "nobody speaks QMP there" in err, len(err.splitlines())) == (1, True, 2), err


def test_a_path_that_is_too_long_for_a_socket_is_said_to_be(
    vpt: Vpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            listener.bind("vm.qmp")
        code, _, err = vpt("attach", f"{folder}/vm.qmp", "--switch", "sw0")
    assert (code, "longer than the 107 bytes" in err, "./vm.qmp" in err) == (2, True, True)


def test_a_socket_that_is_deep_in_the_tree_is_reached_from_its_folder_and_names_the_owner(
    image: Image, vpt: Vpt, vptd: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("d" * 200)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with Guest(image, find_qemu(), name="deep", accel="tcg", qmp=Path("deep.qmp"), extra=PORTS):
        until(lambda: listener_pid(Path("deep.qmp")), "QEMU's QMP socket")
        code, out, err = vpt("attach", "./deep.qmp", "--switch", "sw0")
        assert (code, "plugs ./deep.qmp into sw0" in out) == (0, True), err
        owner = vptd.call("port.show", name="deep")["owner"]
        assert owner == f"qmp:{folder.resolve()}/deep.qmp"
    assert vpt("detach", owner)[0] == 0, "the VM has ended, and is named as vpt show names it"
    assert vptd.call("port.list")["ports"] == []


def test_a_vm_is_named_as_its_ports_name_it(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client
) -> None:
    guest, qmp = boot("named", *PORTS, wait=False)
    code, out, err = vpt("attach", f"qmp:{qmp}", "--switch", "sw0")
    assert (code, f"plugs {qmp} into sw0" in out) == (0, True), err
    assert vptd.call("port.show", name="named")["owner"] == f"qmp:{qmp}"
    guest.kill()
    assert vpt("detach", f"qmp:{qmp}")[0] == 0
    code, _, err = vpt("attach", "qmp:", "--switch", "sw0")
    assert (code, "'qmp:' names no VM" in err) == (2, True)


@pytest.mark.parametrize("name", ["new\nline", os.fsdecode(b"\xff")], ids=["control character", "bytes"])
def test_a_path_that_is_no_text_is_said_to_be(vpt: Vpt, tmp_path: Path, name: str) -> None:
    """A port of that VM could not say whose it is."""
    code, _, err = vpt("attach", f"{tmp_path}/{name}/vm.qmp", "--switch", "sw0")
    assert (code, "has a character that is no text" in err, len(err.splitlines())) == (2, True, 2), err


@pytest.mark.parametrize(
    "arguments",
    [
        ("attach", "/run/vm.qmp", "--switch", "sw0", "--config"),
        ("attach", "/run/vm.qmp", "--switch", "sw0", "--connect", "qemu:///system"),
        ("detach", "/run/vm.qmp", "--config"),
        ("detach", "/run/vm.qmp", "--live"),
        ("detach", "/run/vm.qmp", "--connect", "qemu:///system"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_options_that_only_libvirt_has_a_use_for_are_refused(vpt: Vpt, arguments: tuple[str, ...]) -> None:
    code, _, err = vpt(*arguments)
    assert (code, "is for libvirt domains" in err) == (2, True), err


def test_a_socket_that_says_nothing_is_told_by_whose_it_is(
    runtime: Path, vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vptd's own, here: it waits for requests."""
    monkeypatch.setattr(qemu_qmp, "_STEP_S", 0.5)
    for command in (("attach", "--switch", "sw0"), ("detach",)):
        code, _, err = vpt(command[0], str(locate(runtime).control), *command[1:])
        assert (code, f"process {os.getpid()} (" in err) == (1, True), err
        assert "pgrep -a qemu" in err.partition("hint:")[2]
    assert vptd.call("port.list")["ports"] == []


@pytest.mark.parametrize("kind", ["vhost-user", "passthrough"])
def test_several_queue_pairs_without_kvm(
    boot: Callable[..., tuple[Guest, str]], vpt: Vpt, vptd: Client, kind: str
) -> None:
    """Without MSI-X, which vhost-user under TCG must do without, all queues share an interrupt."""
    guest, qmp = boot(f"pairs-{kind}", *PORTS)
    other, other_qmp = boot(f"peer-{kind}", *PORTS)
    assert vpt("attach", other_qmp, "--switch", "sw0", "--port", "peer")[0] == 0
    network(other, 2)
    named = ("--switch", "sw0", "--kind", kind, "--pairs", "2", "--port", "p1")
    code, _, err = vpt("attach", qmp, *named)
    assert code == 0, err
    network(guest, 1)
    assert ping(guest, "10.8.0.2", count=10).lost == 0
    assert vpt("detach", qmp)[0] == 0
    assert leftovers(qmp) == []
    assert vpt("detach", other_qmp)[0] == 0
    guest.kill()
    other.kill()


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
