# SPDX-License-Identifier: BSD-2-Clause
"""The hook: run as libvirt runs it, and in a real libvirtd that starts a domain with two ports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.libvirt import NEEDS, assert_traffic_between_its_interfaces
from support.libvirtd import NOBODY, Libvirtd
from vpt.cli import main
from vpt.daemon.client import Client
from vpt.daemon.daemon import Settings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.runtime import locate
from vpt.errors import UsageError
from vpt.guest import Image
from vpt.libvirt_plugin import _hook
from vpt.libvirt_plugin.metadata import Plug, plugs_in
from vpt.libvirt_plugin.xml import add_port

DOMAIN = (
    "<domain><name>d1</name><memory>1</memory><os><type machine='pc'>hvm</type></os>"
    "<devices></devices></domain>"
)

URI = "qemu:///session" if os.geteuid() else "qemu:///system"


def plugged(xml: str, runtime: Path, **more: str) -> str:
    for name, kind in (("h1", "vhost-user"), ("h2", "passthrough")):
        settings = {"mac": f"52:54:00:00:01:0{name[1]}", "pairs": 1, **more}
        socket = f"{runtime}/ports/{name}.sock"
        xml = add_port(xml, Plug(name, "sw0", kind, socket, str(runtime), settings))  # type: ignore[arg-type]
    return xml


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    assert main(["libvirt", "hook", "install", "--hooks-dir", str(tmp_path)]) == 0
    return tmp_path


def run(hooks: Path, operation: str, xml: str) -> subprocess.CompletedProcess[str]:
    """As libvirt runs it: another Python than ours, which has no vpt."""
    argv = [sys.executable, "-I", "-S", str(hooks / "qemu.d" / "vpt"), "d1", operation, "begin", "-"]
    return subprocess.run(argv, input=xml, capture_output=True, text=True, timeout=30, check=False)


def names(vptd: Client) -> list[str]:
    return [port["name"] for port in vptd.call("port.list")["ports"]]


def test_ports_come_up_before_the_start_and_go_after_the_stop(
    hooks: Path, runtime: Path, vptd: Client
) -> None:
    xml = plugged(DOMAIN, runtime)
    for _ in range(2):  # a start that failed elsewhere is tried again
        done = run(hooks, "prepare", xml)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert names(vptd) == ["h1", "h2"]
    assert vptd.call("port.show", name="h1")["mac"] == "52:54:00:00:01:01"
    assert run(hooks, "start", xml).returncode == 0
    assert run(hooks, "release", xml).returncode == 0
    assert names(vptd) == []


def test_a_port_that_was_there_before_stays(hooks: Path, runtime: Path, vptd: Client) -> None:
    """A topology's, for example: the domain only uses it, with settings that it does not know of."""
    path = str(runtime / "own.sock")
    vptd.call("port.add", name="h1", switch="sw0", kind="vhost-user", socket=path, policy={"kind": "notify"})
    xml = plugged(DOMAIN, runtime)
    done = run(hooks, "prepare", xml)
    assert (done.returncode, "socket is" in done.stderr) == (1, True), "QEMU would not find it there"
    xml = xml.replace(f"{runtime}/ports/h1.sock", path)
    done = run(hooks, "prepare", xml)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(vptd) == ["h1", "h2"]
    assert run(hooks, "release", xml).returncode == 0
    assert names(vptd) == ["h1"]
    vptd.call("port.del", name="h1")
    assert run(hooks, "prepare", xml).returncode == 0
    assert vptd.call("port.show", name="h1")["socket"] == path, "made anew where the device will connect"
    assert run(hooks, "release", xml).returncode == 0
    assert names(vptd) == []


def test_the_port_of_another_domain_is_refused(hooks: Path, runtime: Path, vptd: Client) -> None:
    """A clone of a domain's XML has its ports, too: its QEMU would wait forever."""
    first, clone = (DOMAIN.replace("</name>", f"</name><uuid>{n}</uuid>") for n in (1, 2))
    assert run(hooks, "prepare", plugged(first, runtime)).returncode == 0
    done = run(hooks, "prepare", plugged(clone, runtime))
    assert done.returncode == 1
    assert "port 'h1' belongs to another VM, libvirt:" in done.stderr
    assert f"vpt detach d1 h1 --config --connect {URI}\n" in done.stderr
    assert run(hooks, "release", plugged(clone, runtime)).returncode == 0
    assert names(vptd) == ["h1", "h2"], "those of the first stay"
    assert run(hooks, "release", plugged(first, runtime)).returncode == 0
    assert names(vptd) == []


def test_without_vptd_the_start_fails_and_says_what_to_do(hooks: Path, tmp_path: Path) -> None:
    xml = plugged(DOMAIN, tmp_path / "no where")
    done = run(hooks, "prepare", xml)
    assert done.returncode == 1
    assert f"start it: vpt --runtime-dir '{tmp_path}/no where' daemon start;" in done.stderr
    assert f"vpt detach d1 h1 --config --connect {URI}\n" in done.stderr
    # A running domain is killed where the hook fails here.
    for operation in ("reconnect", "release", "stopped", "restore", "migrate", "started", "attach"):
        assert run(hooks, operation, xml).returncode == 0
    assert run(hooks, "reconnect", "no XML at all").returncode == 0


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("runtime-dir='{}' ", "", "vpt port h1 has no runtime-dir"),
        ("switch='sw0' ", "", "vpt port h1 has no switch"),
        ("pairs='1'", "pairs='one'", "vpt port h1 has pairs 'one'"),
    ],
)
def test_damaged_metadata_is_told_in_a_sentence(
    hooks: Path, tmp_path: Path, was: str, becomes: str, says: str
) -> None:
    xml = plugged(DOMAIN, tmp_path)
    damaged = xml.replace(was.format(tmp_path), becomes, 1)
    assert damaged != xml
    done = run(hooks, "prepare", damaged)
    assert done.returncode == 1
    assert done.stderr == f"vpt: the metadata of d1 is damaged: {says}; mend it: virsh -c {URI} edit d1\n"
    assert run(hooks, "release", damaged).returncode == 0
    with pytest.raises(UsageError, match="metadata is damaged") as caught:
        plugs_in(damaged)
    assert "virsh edit" in str(caught.value.hint)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be somebody else")
def test_a_vptd_of_somebody_else_is_not_one_to_be_started(runtime: Path) -> None:
    os.seteuid(NOBODY)
    try:
        with pytest.raises(_hook.HookError, match=r"no permission to use .*; join the group"):
            _hook.call(str(runtime), "port.list", {})
    finally:
        os.seteuid(0)


def test_a_domain_without_our_ports_is_none_of_our_business(hooks: Path) -> None:
    assert run(hooks, "prepare", DOMAIN).returncode == 0


def test_what_vptd_refuses_is_passed_on(hooks: Path, runtime: Path) -> None:
    done = run(hooks, "prepare", plugged(DOMAIN, runtime).replace("sw0", "sw9"))
    assert (done.returncode, "no switch 'sw9'" in done.stderr) == (1, True)


def test_install_and_remove_touch_only_what_is_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def vpt(*args: str) -> tuple[int, str]:
        code = main(["libvirt", "hook", *args, "--hooks-dir", str(tmp_path)])
        out, err = capsys.readouterr()
        return code, out + err

    path = tmp_path / "qemu.d" / "vpt"
    assert vpt("status") == (0, f"absent: {path}\n")
    assert "restart libvirtd" in vpt("install")[1]
    assert vpt("status") == (0, f"installed: {path}\n")
    assert os.access(path, os.X_OK)
    path.write_bytes(path.read_bytes() + b"# older\n")
    assert vpt("status")[1].startswith("outdated")
    assert vpt("install") == (0, f"installed {path}\n")
    beside = path.with_name("other")
    beside.touch()
    assert vpt("remove") == (0, f"removed {path}\n")
    beside.unlink()
    vpt("install")
    vpt("remove")
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    for command in ("install", "remove"):
        code, said = vpt(command)
        assert (code, "is not vpt's" in said) == (1, True)
    assert path.read_text() == "#!/bin/sh\n"


def test_what_is_in_the_way_of_the_hook_is_said_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "qemu.d" / "vpt"

    def refused(command: str, code: int = 1) -> str:
        assert main(["libvirt", "hook", command, "--hooks-dir", str(tmp_path)]) == code
        return capsys.readouterr().err

    path.mkdir(parents=True)
    for command in ("install", "remove"):
        said = refused(command)
        assert f"error: {path} is a folder, and not vpt's hook" in said
        assert f"hint: see what is in it: ls -la {path}" in said
    assert main(["libvirt", "hook", "status", "--hooks-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"foreign: {path}\n"
    path.rmdir()
    path.write_text("#!/bin/sh\n")
    assert f"mv {path} {path}-other" in refused("install"), "libvirt runs all that is in the folder"
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("")
    assert f"{path.parent}" in refused("install").partition("hint:")[2]
    assert path.parent.read_text() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be somebody else")
def test_a_folder_that_is_not_ours_to_write_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = Path(tempfile.mkdtemp(dir="/tmp"))
    hooks.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        code = main(["libvirt", "hook", "install", "--hooks-dir", str(hooks)])
    finally:
        os.seteuid(0)
    said = capsys.readouterr().err
    assert (code, f"no permission to write to {hooks}/qemu.d" in said) == (3, True), said
    assert re.search(r"run as root: sudo .*\blibvirt hook install", said.partition("hint:")[2])
    assert list(hooks.iterdir()) == []
    hooks.rmdir()


# ---- a real libvirtd ----


@pytest.mark.vm
@pytest.mark.needs(*NEEDS, "libvirtd", "unshare")
def test_a_libvirtd_starts_a_domain_with_two_ports(libvirtd: Libvirtd, runtime: Path, vptd: Client) -> None:
    cold_start(libvirtd, runtime, vptd)


@pytest.mark.vm
@pytest.mark.needs(*NEEDS, "libvirtd", "unshare", "setpriv")
def test_the_libvirtd_of_a_user_without_rights_does_so_too(image: Image) -> None:
    """Its hook runs as that user, and vptd's group lets it in: to vptd and to the sockets of its ports."""
    daemon = Libvirtd(image, session=True)
    paths = locate(daemon.root / "vpt")
    try:
        daemon.start()
        with EmbeddedDaemon(Settings(paths, keeper=False, group=NOBODY)), Client(paths.control) as vptd:
            vptd.call("switch.add", name="sw0")
            cold_start(daemon, paths.runtime, vptd, socket_mode="0660")
    finally:
        daemon.close()


def cold_start(daemon: Libvirtd, runtime: Path, vptd: Client, **settings: str) -> None:
    import libvirt

    libvirtd, nowhere = daemon.libvirt, daemon.root / "nowhere"
    guest = libvirtd.define("cold", machine="q35")
    bare = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    owner = f"session-{daemon.user}" if daemon.user else "system"
    try:
        # No vptd there: the start fails, and the user reads why.
        libvirtd.connection.defineXML(plugged(bare, nowhere))
        with pytest.raises(libvirt.libvirtError, match=re.escape(f"--runtime-dir {nowhere} daemon start")):
            guest.domain.create()
        libvirtd.connection.defineXML(bare)
        libvirtd.connection.defineXML(plugged(bare, runtime, **settings))
        assert names(vptd) == []
        guest.start()
        ports = vptd.call("port.list")["ports"]
        assert {port["name"] for port in ports} == {"h1", "h2"}
        assert {port["owner"] for port in ports} == {f"libvirt:{owner}:{guest.domain.UUIDString()}"}
        guest.wait_ready()
        guest.run("ip link set eth0 up; ip link set eth1 up")
        guest.wait_until(
            "! grep -q 0 /sys/class/net/eth0/carrier /sys/class/net/eth1/carrier", 10, "carriers"
        )
        assert_traffic_between_its_interfaces(guest)
        guest.stop()
        assert names(vptd) == []
    finally:
        libvirtd.remove(guest)
