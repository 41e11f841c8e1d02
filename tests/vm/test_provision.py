# SPDX-License-Identifier: BSD-2-Clause
"""vpt guest: a tiny guest in a QEMU of its own, from booting it to what is left when it is gone.

One guest serves most tests, as it would a user: each test is a command or two.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.vptd import Vptd, gone
from support.waiting import until
from vpt.cli import main
from vpt.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from vpt.provision.identity import new_key
from vpt.provision.record import Store

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.needs(
        "qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make", "dropbear", "py:paramiko"
    ),
]

# A guest boots in seconds; a machine that runs other tests beside gets far more.
BOOT_S = 200.0


class Lab:
    """A vptd with a switch, and the command line."""

    def __init__(self) -> None:
        self.vptd = Vptd()
        self.vptd.start()
        self.vptd.call("switch.add", name="lab")
        # Where the command line looks for guests: it is told the runtime dir only.
        self.store = Store(self.vptd.paths.runtime / "state")

    def vpt(self, *arguments: str, code: int = EXIT_OK) -> tuple[bytes, bytes]:
        """Standard output and standard error of a command that must end with `code`.

        In this process: a new one would spend more time on starting than on the guest.
        """
        out, err = io.BytesIO(), io.BytesIO()
        with (
            contextlib.redirect_stdout(io.TextIOWrapper(out, write_through=True)) as text,
            contextlib.redirect_stderr(io.TextIOWrapper(err, write_through=True)) as errors,
        ):
            got = main(self.argv(*arguments))
        said = out.getvalue(), err.getvalue()
        # They would close what they write to.
        text.detach()
        errors.detach()
        assert got == code, b"".join(said).decode()
        return said

    def argv(self, *arguments: str) -> list[str]:
        return ["--runtime-dir", str(self.vptd.paths.runtime), *arguments]

    def typed(self, *words: str) -> bytes:
        """What a hint tells to type."""
        return shlex.join(["vpt", *self.argv(*words)]).encode()

    def boot(self, name: str, *options: str, code: int = EXIT_OK) -> str:
        out, err = self.vpt("guest", "boot", name, "--memory", "96", *options, code=code)
        return (out + err).decode()

    def run(self, name: str, script: str, code: int = EXIT_OK) -> str:
        return self.vpt("guest", "run", name, "--", "sh", "-c", script, code=code)[0].decode()

    def guest(self, name: str) -> dict[str, Any]:
        listed = json.loads(self.vpt("guest", "ls", "--json")[0])["guests"]
        return next(guest for guest in listed if guest["name"] == name)

    def ports(self) -> list[str]:
        return [port["name"] for port in self.vptd.call("port.list")["ports"]]

    def close(self) -> None:
        for name in self.store.names():
            self.vpt("guest", "rm", name)
        self.vptd.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def vm1(lab: Lab) -> str:
    """A guest with a vhost-user port, made for it, and a passthrough port, which was there."""
    lab.vptd.call("port.add", switch="lab", name="pt", kind="passthrough", mac="52:54:00:00:08:02")
    lab.boot("vm1", "--port", "pt", "--switch", "lab", "--address", "10.0.8.1/24")
    return "vm1"


def test_its_interfaces_are_named_in_the_order_of_its_ports(lab: Lab, vm1: str) -> None:
    """Whatever drives them; and the address that was asked for is on the first."""
    macs = lab.guest(vm1)["macs"]
    assert set(macs) == {"pt", "vm1"}
    assert lab.run(vm1, "cat /sys/class/net/vpt[01]/address").split() == [macs["pt"], macs["vm1"]]
    script = "for i in 0 1; do readlink /sys/class/net/vpt$i/device/driver; done; ip addr show vpt0"
    vpt_net, virtio_net, *address = lab.run(vm1, script).splitlines()
    assert (vpt_net.rpartition("/")[2], virtio_net.rpartition("/")[2]) == ("vpt_net", "virtio_net")
    assert "10.0.8.1/24" in "".join(address)


def test_a_port_comes_and_goes_while_it_runs(lab: Lab, vm1: str) -> None:
    """Its machine type takes a device into a spare slot only."""
    qmp = str(lab.store.folder(vm1).qmp)
    count = "ls -d /sys/class/net/* | wc -l"
    before = lab.run(vm1, count)
    lab.vpt("attach", qmp, "--switch", "lab", "--port", "hot")
    more = f"{int(before) + 1}"
    lab.run(vm1, f"for i in $(seq 100); do [ $({count}) = {more} ] && exit 0; sleep 0.2; done; exit 1")
    lab.vpt("detach", qmp, "hot")
    assert lab.run(vm1, count) == before


def test_a_name_that_no_guest_has_makes_no_guest(lab: Lab, vm1: str) -> None:
    _, err = lab.vpt("guest", "boot", "vm11", code=1)
    assert b"no guest 'vm11' to start again (there are: " in err
    assert b"vm1" in err
    assert not lab.store.exists("vm11")


def test_a_command_keeps_its_status_its_output_and_its_arguments(lab: Lab, vm1: str) -> None:
    out, err = lab.vpt("guest", "run", vm1, "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (out, err) == (b"out\n", b"err\n")
    assert lab.vpt("guest", "run", vm1, "--", "printf", "%s|", "a b", "$HOME", "'")[0] == b"a b|$HOME|'|"
    argv = [sys.executable, "-m", "vpt.cli", *lab.argv("guest", "run", "-i", vm1, "--", "wc", "-c")]
    counted = subprocess.run(argv, input=bytes(100_000), capture_output=True, timeout=BOOT_S, check=True)
    assert counted.stdout == b"100000\n"


def test_files_go_in_and_come_back_as_they_were(lab: Lab, vm1: str, tmp_path: Path) -> None:
    source, back = tmp_path / "a file", tmp_path / "back"
    source.write_bytes(os.urandom(1 << 20))
    source.chmod(0o750)
    lab.vpt("guest", "copy", str(source), f"{vm1}:/tmp/new/")
    assert lab.run(vm1, "stat -c '%a %s' '/tmp/new/a file'") == f"750 {1 << 20}\n"
    lab.vpt("guest", "copy", f"{vm1}:/tmp/new/a file", str(back))
    assert back.read_bytes() == source.read_bytes()
    assert lab.run(vm1, "ls /tmp/new") == "a file\n"


def test_a_copy_that_fails_leaves_nothing(lab: Lab, vm1: str, tmp_path: Path) -> None:
    _, err = lab.vpt("guest", "copy", f"{vm1}:/absent", str(tmp_path / "x"), code=EXIT_FAILED)
    assert b"/absent" in err
    assert list(tmp_path.iterdir()) == []
    lab.vpt("guest", "copy", str(tmp_path), f"{vm1}:/tmp", code=EXIT_USAGE)
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    lab.run(vm1, "dd if=/dev/zero of=/tmp/fill bs=64k 2>/dev/null; true")
    _, err = lab.vpt("guest", "copy", str(tmp_path / "big"), f"{vm1}:/tmp/big", code=EXIT_FAILED)
    assert b"No space left" in err
    assert lab.run(vm1, "rm /tmp/fill; ls /tmp") == "new\n"


def test_a_shell_is_a_terminal_of_this_terminals_size(lab: Lab, vm1: str) -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["VPT_RUNTIME_DIR"] = str(lab.vptd.paths.runtime)
        os.execv(sys.executable, [sys.executable, "-m", "vpt.cli", "guest", "ssh", vm1])
    try:
        seen = _until(fd, b"#")
        os.write(fd, b"stty size; tty; exit 5\n")
        seen = _until(fd, None)
        assert b"24 80" in seen
        assert b"/dev/pts/" in seen
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    finally:
        os.close(fd)


def _until(fd: int, sign: bytes | None) -> bytes:
    """What the terminal shows until `sign`, or to its end."""
    seen, end = b"", time.monotonic() + 60
    while sign is None or sign not in seen:
        assert select.select([fd], [], [], max(0.0, end - time.monotonic()))[0], f"only saw {seen!r}"
        try:
            data = os.read(fd, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
    return seen


def test_another_host_key_than_the_pinned_one_is_refused(lab: Lab, vm1: str) -> None:
    """As if something else answered on its TCP port."""
    record = lab.store.load(vm1)
    try:
        lab.store.save(record.model_copy(update={"host_key": new_key().public}))
        _, err = lab.vpt("guest", "run", vm1, "--", "true", code=EXIT_FAILED)
        assert b"another host key" in err
        assert lab.typed("guest", "rm", "vm1") in err
    finally:
        lab.store.save(record)
    lab.run(vm1, "true")


def test_only_the_key_made_for_it_opens_it(lab: Lab, vm1: str, tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "key").write_bytes(key.private)
    record = lab.store.load(vm1)
    try:
        lab.store.save(record.model_copy(update={"ssh_key": str(tmp_path / "key")}))
        _, err = lab.vpt("guest", "run", vm1, "--", "true", code=EXIT_FAILED)
        assert b"does not take the key" in err
    finally:
        lab.store.save(record)
    assert Path(record.ssh_key).stat().st_mode & 0o777 == 0o600


def test_the_guest_does_not_get_out_by_the_management_network(lab: Lab, vm1: str) -> None:
    lab.run(vm1, "nc -w 3 169.254.118.2 22 </dev/null", code=1)


def test_booting_it_again_says_so_or_finds_it(lab: Lab, vm1: str) -> None:
    assert "already" in lab.boot(vm1, "--switch", "lab", code=EXIT_FAILED)
    pid = lab.guest(vm1)["pid"]
    lab.boot(vm1, "--port", "pt", "--switch", "lab", "--may-exist")
    assert lab.guest(vm1)["pid"] == pid
    said = lab.boot(vm1, "--port", "pt", "--switch", "lab", "--may-exist", "--cpus", "2", code=EXIT_FAILED)
    assert "other settings (cpus)" in said


def test_a_port_that_somebody_has_is_refused_and_nothing_is_left(lab: Lab, vm1: str) -> None:
    before = lab.ports()
    assert "somebody is plugged into port pt" in lab.boot("vm2", "--port", "pt", code=EXIT_FAILED)
    assert "'absent', which is not there" in lab.boot("vm2", "--port", "absent", code=EXIT_FAILED)
    assert "no disk" in lab.boot("vm2", "--switch", "lab", "--disk", "/absent", code=EXIT_USAGE)
    assert lab.ports() == before
    assert lab.store.names() == [vm1]


def test_not_being_up_in_time_says_what_was_missing_and_leaves_nothing(lab: Lab) -> None:
    """Its kernel is told to run something else than the init that would say READY."""
    before = lab.ports()
    said = lab.boot(
        "lost", "--switch", "lab", "--append", "rdinit=/bin/absent", "--timeout", "1", code=EXIT_FAILED
    )
    assert "waited 1 s for 'vpt-guest-ready' on its console" in said or "ended while" in said
    assert "its console" in said
    assert lab.ports() == before
    assert not lab.store.exists("lost")
    assert not (lab.store.path / "lost").exists()


def test_a_boot_that_is_interrupted_leaves_nothing(lab: Lab) -> None:
    before = lab.ports()
    argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(lab.vptd.paths.runtime)]
    argv += ["guest", "boot", "cut", "--switch", "lab", "--append", "rdinit=/bin/absent", "--memory", "96"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as booting:
        pidfile = lab.store.folder("cut").pidfile
        until(lambda: pidfile.exists() and pidfile.read_text(), "QEMU to be there")
        pid = int(pidfile.read_text())
        booting.send_signal(signal.SIGTERM)
        assert booting.wait(60) == 130
    assert gone(pid)
    assert lab.ports() == before
    assert not (lab.store.path / "cut").exists()


def test_a_guest_whose_qemu_was_killed_is_seen_and_starts_again(lab: Lab, vm1: str) -> None:
    pid = lab.guest(vm1)["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: lab.guest(vm1)["state"] == "stopped", "the guest to be seen as stopped")
    _, err = lab.vpt("guest", "run", vm1, "--", "true", code=EXIT_FAILED)
    assert lab.typed("guest", "boot", "vm1") in err
    until(
        lambda: {p["state"] for p in lab.vptd.call("port.list")["ports"]} == {"down"}, "its ports to be free"
    )
    lab.vpt("guest", "boot", vm1)
    assert lab.guest(vm1)["state"] == "running"
    assert "10.0.8.1/24" in lab.run(vm1, "ip addr show vpt0")


def test_stopped_and_removed_it_leaves_only_what_was_there_before(lab: Lab, vm1: str) -> None:
    """Last: the guest that the others used."""
    pid = lab.guest(vm1)["pid"]
    key = lab.guest(vm1)["ssh"]["key"]
    assert b"is stopped" in lab.vpt("guest", "stop", vm1)[0]
    assert gone(pid)
    assert b"was stopped already" in lab.vpt("guest", "stop", vm1)[0]
    lab.vpt("guest", "rm", vm1)
    assert not Path(key).exists()
    assert sorted(path.name for path in lab.store.path.iterdir()) == [".lock"]
    assert lab.ports() == ["pt"]
    lab.vpt("guest", "rm", vm1, code=EXIT_FAILED)
    lab.vpt("guest", "rm", vm1, "--if-exists")


def test_an_image_is_built_once_and_can_be_removed(lab: Lab, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = json.loads(lab.vpt("guest", "build", "tiny", "--json")[0])
    again = json.loads(lab.vpt("guest", "build", "tiny", "--json")[0])
    assert again == first
    assert first["name"] in lab.vpt("guest", "ls", "--images")[0].decode()
    lab.vpt("guest", "rm", first["name"], "--image")
    assert json.loads(lab.vpt("guest", "ls", "--images", "--json")[0])["images"] == []
    assert not Path(first["initrd"]).exists()
