# SPDX-License-Identifier: BSD-2-Clause
"""Machines that vpt makes as libvirt domains, and existing domains that a topology gives ports to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.libvirt import NEEDS, DomainGuest, Libvirt, lose_device
from vpt.cli import main
from vpt.daemon.client import Client
from vpt.daemon.runtime import locate
from vpt.errors import EXIT_DIFFERENT, EXIT_FAILED, EXIT_OK
from vpt.guest import ping
from vpt.libvirt_plugin.metadata import plugs_in
from vpt.libvirt_plugin.rules import alias_in
from vpt.qemu import Qemu

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.needs(*NEEDS, "gcc", "make", "dropbear", "py:paramiko"),
]

Cli = Callable[..., tuple[int, str, str]]

TOPOLOGY = """\
switches:
  - name: sw0
ports:
  - {{name: old-eth, switch: sw0, kind: vhost-user, mac: 52:54:00:00:07:01, socket: {socket}}}
  - {{name: new-eth, switch: sw0, kind: vhost-user, mac: 52:54:00:00:07:02}}
vms:
  - domain: old
    connect: {uri}
    ports: [{old}]
  - name: new
    via: libvirt
    connect: {uri}
    memory_mib: 96
    ports:
      - {{port: new-eth, address: 10.0.7.2/24}}
"""


class _Kept:
    """The connection that all tests share."""

    def __init__(self, connection: object) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def close(self) -> None:
        """It stays open for the next command."""


@pytest.fixture
def cli(
    libvirt: Libvirt, runtime: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cli:
    """cli("guest", "ls", code=0): exit code, output, errors."""
    monkeypatch.setattr("libvirt.open", lambda _uri: _Kept(libvirt.connection))
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", libvirt.uri)

    def run(*args: str, code: int = EXIT_OK) -> tuple[int, str, str]:
        capfd.readouterr()
        got = main(["--runtime-dir", str(runtime), *args])
        out, err = capfd.readouterr()
        assert got == code, out + err
        return got, out, err

    return run


@pytest.fixture
def old(libvirt: Libvirt) -> Iterator[DomainGuest]:
    """A running domain of somebody else's."""
    guest = libvirt.define("old")
    yield guest.start()
    libvirt.remove(guest)


def topology(libvirt: Libvirt, runtime: Path, old: str) -> str:
    """old: the port that somebody else's domain is to have; its socket is not where vptd would put it."""
    return TOPOLOGY.format(uri=libvirt.uri, old=old, socket=runtime / "old.sock")


def names(libvirt: Libvirt) -> set[str]:
    return {domain.name() for domain in libvirt.connection.listAllDomains()}


def ports(domain: object) -> list[str]:
    return [plug.name for plug in plugs_in(domain.XMLDesc(0))]  # type: ignore[attr-defined]


def test_a_topology_makes_a_domain_and_gives_a_port_to_another(
    libvirt: Libvirt, runtime: Path, cli: Cli, old: DomainGuest, tmp_path: Path
) -> None:
    """Both reach each other; the second time there is nothing to do; pruned, only vpt's part is gone."""
    file = tmp_path / "lab.yaml"
    file.write_text(topology(libvirt, runtime, "old-eth"))
    old.wait_ready()
    cli("apply", str(file))
    assert ports(old.domain) == ["old-eth"]
    old.wait_until("[ -e /sys/class/net/eth0 ]", 20, "eth0")
    old.run("ip addr add 10.0.7.1/24 dev eth0 && ip link set eth0 up")
    old.wait_until("grep -q 1 /sys/class/net/eth0/carrier", 20, "a carrier")
    assert ping(old, "10.0.7.2", count=10).lost == 0

    assert cli("diff", str(file), "--prune")[1] == "nothing to do\n"
    exported = tmp_path / "exported.yaml"
    exported.write_text(cli("export")[1])
    assert cli("diff", str(exported), "--prune")[1] == "nothing to do\n"
    assert "169.254.118.15" in cli("guest", "run", "new", "--", "ip", "addr", "show", "mgmt")[1]
    cli("guest", "run", "new", "--", "sh", "-c", "exit 9", code=9)
    listed = cli("guest", "ls")[1]
    assert "domain old" in listed
    assert "running  libvirt" in listed

    file.write_text(file.read_text().replace("52:54:00:00:07:0", "52:54:00:00:08:0"))
    planned = cli("diff", str(file), code=EXIT_DIFFERENT)[1]
    assert "change vm old: detach old-eth, to be replaced  [needs --replace]" in planned
    assert "delete vm new: new-eth is replaced  [needs --replace]" in planned
    cli("apply", str(file), "--replace")
    assert cli("diff", str(file), "--prune")[1] == "nothing to do\n"
    assert "52:54:00:00:08:01" in old.domain.XMLDesc(0), "plugged in again, as it is now"
    assert "52:54:00:00:07:01" not in old.domain.XMLDesc(0)
    old.wait_until("grep -q 08:01 /sys/class/net/eth0/address", 20, "the new eth0")
    old.run("ip addr add 10.0.7.1/24 dev eth0 && ip link set eth0 up")
    old.wait_until("grep -q 1 /sys/class/net/eth0/carrier", 20, "a carrier")
    assert ping(old, "10.0.7.2", count=10).lost == 0, "the machine was made anew with its new address"
    assert "52:54:00:00:08:02" in cli("guest", "run", "new", "--", "ip", "addr", "show", "vpt0")[1]

    file.write_text(topology(libvirt, runtime, "").replace("52:54:00:00:07:0", "52:54:00:00:08:0"))
    assert (
        "change vm old: detach old-eth  [needs --replace]" in cli("diff", str(file), code=EXIT_DIFFERENT)[1]
    )
    cli("apply", str(file), code=EXIT_FAILED)
    assert ports(old.domain) == ["old-eth"]
    cli("apply", str(file), "--replace")
    assert ports(old.domain) == []

    file.write_text("switches: [{name: sw0}]\n")
    cli("apply", str(file), "--prune")
    assert "new" not in names(libvirt)
    assert "old" in names(libvirt)
    assert old.domain.isActive()
    assert list((runtime / "state/guests").iterdir()) == [runtime / "state/guests/.lock"]
    with Client(locate(runtime).control) as vptd:
        assert vptd.call("port.list")["ports"] == []


def test_a_device_that_somebody_took_out_of_a_domain_is_put_back(
    libvirt: Libvirt, runtime: Path, cli: Cli, tmp_path: Path
) -> None:
    idle, file = libvirt.define("idle"), tmp_path / "lab.yaml"
    before = idle.domain.XMLDesc(2)
    switches, port = "switches: [{name: sw0}]", "{name: e1, switch: sw0, kind: vhost-user}"
    vm = f"{{domain: idle, connect: '{libvirt.uri}', ports: [e1]}}"
    file.write_text(f"{switches}\nports: [{port}]\nvms: [{vm}]\n")
    try:
        cli("apply", str(file))
        lose_device(idle, "e1", live=False)
        assert "attach e1" in cli("diff", str(file), code=EXIT_DIFFERENT)[1]
        cli("apply", str(file))
        assert alias_in(idle.domain.XMLDesc(2), "e1")
        assert cli("diff", str(file))[1] == "nothing to do\n"
        file.write_text(f"{switches}\n")
        cli("apply", str(file), "--prune")
        assert idle.domain.XMLDesc(2) == before
    finally:
        libvirt.remove(idle)


def plugged_in(cli: Cli, libvirt: Libvirt, vm: str, *more: str) -> None:
    cli("attach", "--connect", libvirt.uri, vm, "--switch", "sw0", *more)


def test_a_domain_that_attach_plugged_in_is_a_machine_of_the_export(
    libvirt: Libvirt, runtime: Path, cli: Cli, old: DomainGuest, tmp_path: Path
) -> None:
    """Running or not, whatever a topology calls it; pruned, it loses its ports before they go."""
    file, exported = tmp_path / "lab.yaml", tmp_path / "exported.yaml"
    idle = libvirt.define("idle")
    before = idle.domain.XMLDesc(2)
    try:
        old.wait_ready()
        plugged_in(cli, libvirt, "old", "--live")
        plugged_in(cli, libvirt, "idle")
        plugged_in(cli, libvirt, "idle", "--port", "more", "--kind", "passthrough")
        exported.write_text(cli("export")[1])
        vms = {vm["name"]: vm for vm in yaml.safe_load(exported.read_text())["vms"]}
        assert vms["old"] == {
            "name": "old",
            "domain": "old",
            "connect": libvirt.uri,
            "ports": [{"port": "old"}],
        }
        assert [port["port"] for port in vms["idle"]["ports"]] == ["idle", "more"]
        assert cli("diff", str(exported), "--prune")[1] == "nothing to do\n"
        assert cli("apply", str(exported), "--prune")[1] == "nothing to do\n"
        file.write_text(
            exported.read_text().replace("name: idle\n  domain", "name: lazy\n  domain")
            .replace(f"  connect: {libvirt.uri}\n", "")
            .replace("- port: idle\n  - port: more", "- port: more\n  - port: idle")
        )  # fmt: skip
        assert "name: lazy" in file.read_text()
        assert "- port: more\n  - port: idle" in file.read_text()
        assert cli("diff", str(file), "--prune")[1] == "nothing to do\n"

        file.write_text("switches: [{name: sw0}]\n")
        assert "left alone: idle, more, old, vm old, vm idle" in cli("apply", str(file))[1]
        cli("apply", str(file), "--prune")
        assert ports(old.domain) == []
        assert idle.domain.XMLDesc(2) == before
        assert "vms" not in cli("export")[1]
    finally:
        libvirt.remove(idle)


def test_a_domain_that_has_only_ports_that_were_made_for_no_vm_is_a_machine_too(
    libvirt: Libvirt, cli: Cli, vptd: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the domain says so. A clone's configuration names a port that a running domain has."""
    exported, empty = tmp_path / "exported.yaml", tmp_path / "empty.yaml"
    empty.write_text("switches: [{name: sw0}]\n")
    idle, other, clone = (libvirt.define(name) for name in ("idle", "other", "aclone"))
    before = idle.domain.XMLDesc(2)
    try:
        for name in ("mine", "both", "live"):
            vptd.call("port.add", switch="sw0", name=name, kind="vhost-user")
        plugged_in(cli, libvirt, "idle", "--port", "mine", "--config")
        other.start().wait_ready()
        plugged_in(cli, libvirt, "other", "--port", "both", "--live", "--config")
        plugged_in(cli, libvirt, "other", "--port", "live", "--live")
        xml = other.domain.XMLDesc(2).replace("<name>other<", "<name>aclone<")
        libvirt.connection.defineXML(xml.replace(other.domain.UUIDString(), clone.domain.UUIDString()))
        exported.write_text(cli("export")[1])
        vms = {vm["name"]: vm for vm in yaml.safe_load(exported.read_text())["vms"]}
        assert {name: [port["port"] for port in vm["ports"]] for name, vm in vms.items()} == {
            "idle": ["mine"],
            "other": ["both", "live"],
        }
        assert vms["idle"]["connect"] == libvirt.uri
        assert cli("diff", str(exported), "--prune")[1] == "nothing to do\n"
        monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///default")
        assert cli("diff", str(exported), "--prune")[1] == "nothing to do\n", "the file names the libvirt"
        cli("apply", str(exported), "--prune")
        monkeypatch.setenv("LIBVIRT_DEFAULT_URI", libvirt.uri)
        cli("apply", str(empty), "--prune")
        assert idle.domain.XMLDesc(2) == before
        assert ports(other.domain) == []
        assert vptd.call("port.list")["ports"] == []
    finally:
        for guest in (idle, other, clone):
            libvirt.remove(guest)
        for port in vptd.call("port.list")["ports"]:
            vptd.call("port.del", name=port["name"])


def test_a_libvirt_that_nothing_names_and_that_is_down_is_not_missed(
    cli: Cli, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    vptd.call("port.add", switch="sw0", name="mine", kind="vhost-user")
    try:
        monkeypatch.setattr("libvirt.open", down)
        _, out, err = cli("export")
        assert ("name: mine" in out, err) == (True, "")
    finally:
        vptd.call("port.del", name="mine")


def test_a_port_that_attach_gave_to_a_domain_of_a_topology_stays_unless_pruned(
    libvirt: Libvirt, runtime: Path, cli: Cli, tmp_path: Path
) -> None:
    file, idle = tmp_path / "lab.yaml", libvirt.define("idle")
    port = "{name: e1, switch: sw0, kind: vhost-user, mac: 52:54:00:00:07:01}"
    vm = f"{{name: lazy, domain: idle, connect: '{libvirt.uri}', ports: [e1]}}"
    file.write_text(f"switches: [{{name: sw0}}]\nports: [{port}]\nvms: [{vm}]\n")
    try:
        cli("apply", str(file))
        plugged_in(cli, libvirt, "idle")
        assert "nothing to do" in cli("diff", str(file))[1]
        (machine,) = yaml.safe_load(cli("export")[1])["vms"]
        assert (machine["name"], machine["ports"]) == ("lazy", [{"port": "e1"}, {"port": "idle"}])
        assert "change vm lazy: detach idle\n" in cli("diff", str(file), "--prune", code=EXIT_DIFFERENT)[1]
        cli("apply", str(file), "--prune")
        assert ports(idle.domain) == ["e1"]
        assert cli("diff", str(file), "--prune")[1] == "nothing to do\n"
        file.write_text("switches: [{name: sw0}]\n")
        cli("apply", str(file), "--prune")
    finally:
        libvirt.remove(idle)


def test_export_without_libvirt_names_the_ports_of_domains_and_says_what_it_does_not_know(
    libvirt: Libvirt, cli: Cli, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = libvirt.define("idle")
    try:
        plugged_in(cli, libvirt, "idle")
        with monkeypatch.context() as patch:
            patch.setattr("libvirt.open", down)
            _, out, err = cli("export")
        assert [port["name"] for port in yaml.safe_load(out)["ports"]] == ["idle"]
        assert "vms" not in out
        assert err.startswith("note: not shown is which domains have idle: no libvirt at qemu:///embed")
    finally:
        libvirt.remove(idle)
        vptd.call("port.del", name="idle", if_exists=True)


def down(_uri: str) -> None:
    import libvirt

    raise libvirt.libvirtError("Failed to connect socket to '/run/libvirt/libvirt-sock'")


def test_a_guest_with_queue_pairs_that_its_qemu_would_crash_with_is_not_made(
    libvirt: Libvirt, runtime: Path, cli: Cli, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt gives MSI-X to a device with several, whatever it is told."""
    monkeypatch.setattr(Qemu, "number", property(lambda _: 7_002_022))
    options = ("--image", "tiny", "--accel", "tcg", "--pairs", "2", "--switch", "sw0", "--memory", "96")
    _, _, err = cli(
        "guest", "boot", "many", "--via", "libvirt", "--connect", libvirt.uri, *options, code=EXIT_FAILED
    )
    assert "with several queue pairs" in err
    assert "one queue pair" in err.partition("hint:")[2]
    assert "many" not in names(libvirt)
    assert vptd.call("port.list")["ports"] == []
    assert not (runtime / "state/guests/many").exists()


def test_a_domain_that_does_not_exist_is_named_and_nothing_is_changed(
    libvirt: Libvirt, runtime: Path, cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(topology(libvirt, runtime, "old-eth"))
    _, _, err = cli("apply", str(file), code=EXIT_FAILED)
    assert f"{file}:7:5: libvirt has no domain 'old'" in err
    with Client(locate(runtime).control) as vptd:
        assert vptd.call("port.list")["ports"] == []


def test_a_domain_of_the_same_name_is_not_touched(
    libvirt: Libvirt, runtime: Path, cli: Cli, old: DomainGuest
) -> None:
    """And the port that was made for the guest is gone again."""
    _, _, err = cli(
        "guest", "boot", "old", "--via", "libvirt", "--connect", libvirt.uri, "--switch", "sw0",
        code=EXIT_FAILED,
    )  # fmt: skip
    assert "which is not this guest" in err
    assert old.domain.isActive()
    with Client(locate(runtime).control) as vptd:
        assert vptd.call("port.list")["ports"] == []
    assert cli("guest", "ls")[1].count("\n") == 1
