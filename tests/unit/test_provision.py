# SPDX-License-Identifier: BSD-2-Clause
"""Machines without booting one: what may be asked for, who they are, the seed, command line and domain."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from vpt.errors import ConflictError, GuestError, MissingError, NotFoundError, TimeoutExpired, UsageError
from vpt.libvirt_plugin.metadata import plugs_in
from vpt.provision import debian, images, ready, seed, ssh
from vpt.provision._domain import domain_xml
from vpt.provision.config import VmConfig, disk_of
from vpt.provision.identity import Identity, Interface, debian_archive, new_key, read_key, tiny_archive
from vpt.provision.images import BootImage
from vpt.provision.machine import Port, machine_for
from vpt.provision.record import Folder, Record, Store
from vpt.qemu import Qemu, UserNet, command_line

OLD = Qemu(Path("/usr/bin/qemu-system-x86_64"), (7, 2, 0))
NEW = Qemu(Path("/usr/bin/qemu-system-x86_64"), (10, 0, 2))


# ---- what may be asked for ----


def test_what_is_left_out_has_a_default_and_short_forms_mean_the_long_ones() -> None:
    config = VmConfig.model_validate({"name": "a", "ports": ["p", {"port": "q", "address": "10.0.0.1/24"}]})
    assert config.image == "tiny"
    assert config.port_names == ["p", "q"]
    assert config.ports[1].address == ["10.0.0.1/24"]
    assert VmConfig.model_validate({"domain": "web"}).name == "web"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"ports": ["p", "p"]}, "listed twice"),
        ({"ports": [{"port": "p", "address": "10.0.0.1"}]}, "no prefix length"),
        ({"ports": [{"port": "p", "address": "10.0.0.300/24"}]}, "no address with prefix"),
        ({"ports": [{"port": "p", "gateway": "router"}]}, "no address"),
        ({"domain": "d", "cpus": 2}, "cpus is for machines to be made"),
        ({"domain": "d", "ports": [{"port": "p", "address": "10.0.0.1/8"}]}, "configures itself"),
        ({"disks": ["4T"]}, "neither a size"),
        ({"user_data": "x"}, "user_data is for cloud images"),
        ({"image": "./i.qcow2", "initrd": "x"}, "initrd is for kernel"),
        ({"connect": "qemu:///system"}, "connect is for libvirt"),
        ({"root_gib": 3}, "tiny runs from memory"),
        ({"cpus": 0}, "greater than or equal to 1"),
        ({"memory_mib": 8}, "greater than or equal to 64"),
        ({"name": "../x"}, "pattern"),
    ],
)
def test_what_contradicts_itself_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VmConfig.model_validate({"name": "a", **data})


def test_paths_are_taken_from_the_files_folder() -> None:
    config = VmConfig.model_validate(
        {"name": "a", "image": "./i.qcow2", "user_data": "u.yaml", "disks": ["4G", "../d.raw"]}
    ).located(Path("/lab/one"))
    assert (config.image, config.user_data) == ("/lab/one/i.qcow2", "/lab/one/u.yaml")
    assert config.disks == ["4G", "/lab/d.raw"]
    assert disk_of("4G").size == 4 << 30
    assert disk_of("/lab/d.raw").path == Path("/lab/d.raw")


# ---- who it is ----


def identity(**more: Any) -> Identity:
    return Identity(
        "web",
        new_key(),
        ("ssh-ed25519 AAAA me",),
        (Interface("52:54:00:00:00:01", "vpt0", ("10.0.0.1/24", "fd00::1/64"), "10.0.0.254"),),
        UserNet(2222, **more),
    )


def unpacked(archive: bytes, folder: Path) -> Path:
    subprocess.run(["cpio", "-id", "--quiet"], input=archive, cwd=folder, check=True)
    return folder


@pytest.mark.needs("cpio", "dropbear", "dropbearkey")
def test_the_tiny_guest_is_given_its_keys_and_its_addresses(tmp_path: Path) -> None:
    who = identity()
    root = unpacked(tiny_archive(who), tmp_path)
    assert (root / "etc/vpt/net").read_text().splitlines() == [
        "52:54:00:00:00:01 vpt0 10.0.0.254 10.0.0.1/24 fd00::1/64",
        "02:76:70:74:00:01 mgmt - 169.254.118.15/24",
    ]
    assert stat.S_IMODE((root / "root/.ssh").stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "etc/dropbear/host_key").stat().st_mode) == 0o600
    shown = subprocess.run(
        ["dropbearkey", "-y", "-f", root / "etc/dropbear/host_key"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert who.host_key.public in shown.stdout


@pytest.mark.needs("cpio")
def test_debian_is_given_files_that_systemd_and_sshd_read(tmp_path: Path) -> None:
    who = identity(internet=True)
    root = unpacked(debian_archive(who), tmp_path) / "overlay"
    assert (root / "etc/ssh/ssh_host_ed25519_key").read_bytes() == who.host_key.private
    assert "Name=vpt0" in (root / "etc/systemd/network/10-vpt-0.link").read_text()
    network = (root / "etc/systemd/network/10-vpt-0.network").read_text()
    assert "Address=fd00::1/64\nGateway=10.0.0.254\n" in network
    assert "Gateway=169.254.118.2" in (root / "etc/systemd/network/10-vpt-1.network").read_text()
    assert (root / "etc/resolv.conf").read_text() == "nameserver 169.254.118.3\n"


def test_a_key_is_read_from_either_half(tmp_path: Path) -> None:
    key = tmp_path / "id"
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA me\n")
    assert read_key(key) == read_key(tmp_path / "id.pub") == "ssh-ed25519 AAAA me"
    with pytest.raises(UsageError, match="no public key in") as caught:
        read_key(tmp_path / "other")
    assert caught.value.hint == "leave the key out, and one is made"
    (tmp_path / "other").touch()
    with pytest.raises(UsageError, match="no public key in") as caught:
        read_key(tmp_path / "other")
    assert "ssh-keygen -y" in str(caught.value.hint), "the private half is there to make it from"
    for bad in (b"-----BEGIN\nKEY-----\n", b"\xff\xfe\x00"):
        (tmp_path / "bad.pub").write_bytes(bad)
        with pytest.raises(UsageError, match="is no public ssh key"):
            read_key(tmp_path / "bad")


def test_a_copy_that_fails_says_where_to_look_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "run", lambda *_args, **_files: 1)
    web = record().model_copy(update={"runtime_dir": "/run/lab"})
    with pytest.raises(GuestError, match="copying web:/var/log/none to") as caught:
        ssh.download(web, "/var/log/none", tmp_path)
    assert caught.value.hint == "see why: vpt --runtime-dir /run/lab guest run web -- ls -l /var/log"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "my file").touch()
    with pytest.raises(GuestError) as caught:
        ssh.upload(web, tmp_path / "my file", "/tmp/")
    assert caught.value.hint == "see why: vpt --runtime-dir /run/lab guest run web -- df -h"
    (tmp_path / "my files").mkdir()
    with pytest.raises(UsageError, match="is a folder") as caught:
        ssh.upload(web, tmp_path / "my files", "/tmp/")
    unpack = "vpt --runtime-dir /run/lab guest run web --stdin -- tar -x -C /"
    assert caught.value.hint == f"tar -c '{tmp_path}/my files' | {unpack}"


# ---- for cloud-init ----


def test_the_seed_is_a_cd_that_cloud_init_finds() -> None:
    pycdlib = pytest.importorskip("pycdlib")
    data = seed.seed_iso({"user-data": b"u" * 5000, "meta-data": b"m", "network-config": b""})
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(data))
    assert iso.pvd.volume_identifier.strip().lower() == b"cidata"
    out = io.BytesIO()
    iso.get_file_from_iso_fp(out, rr_path="/user-data")
    assert out.getvalue() == b"u" * 5000
    iso.close()


def test_the_users_part_comes_first_and_ours_is_merged_into_it() -> None:
    who = identity()
    users = b"#cloud-config\nfinal_message: mine\n"
    first, second = message_from_bytes(seed.user_data(who, users)).get_payload()
    assert first.get_payload(decode=True) == users
    assert first.get_content_type() == "text/cloud-config"
    assert "no_replace" in second["Merge-Type"]
    ours = yaml.safe_load(second.get_payload(decode=True))
    assert ours["ssh_keys"]["ed25519_public"] == who.host_key.public
    assert ours["ssh_authorized_keys"] == ["ssh-ed25519 AAAA me"]
    script = message_from_bytes(seed.user_data(who, b"#!/bin/sh\n")).get_payload()[0]
    assert script.get_content_type() == "text/x-shellscript"


@pytest.mark.parametrize("users", [b"packages: [x]\n", b"", b"\xff\xfe"])
def test_user_data_that_cloud_init_would_ignore_is_refused(users: bytes) -> None:
    with pytest.raises(UsageError, match="user-data"):
        seed.user_data(identity(), users)


def test_each_interface_is_found_by_its_address_and_only_a_way_out_is_a_route() -> None:
    ethernets = yaml.safe_load(seed.network_config(identity()))["ethernets"]
    assert ethernets["vpt0"]["match"] == {"macaddress": "52:54:00:00:00:01"}
    assert ethernets["vpt0"]["routes"] == [{"to": "0.0.0.0/0", "via": "10.0.0.254"}]
    assert "routes" not in ethernets["mgmt"]
    assert "routes" in yaml.safe_load(seed.network_config(identity(internet=True)))["ethernets"]["mgmt"]


# ---- the machine ----

PORTS = [
    Port("a", "lab", "vhost-user", "/run/a.sock", 1, "52:54:00:00:00:01"),
    Port("b", "lab", "passthrough", "/run/b.sock", 2, "52:54:00:00:00:02"),
]


def record(**more: Any) -> Record:
    config = VmConfig.model_validate({"name": "web", "ports": ["a", "b"], **more})
    macs = {port.name: port.mac for port in PORTS}
    return Record(config=config, runtime_dir="/run/vpt", created=1.0, ssh_port=2222, macs=macs)


def image(kind: Any = "tiny", **more: Any) -> BootImage:
    return BootImage("x", kind, "test", **more)


def argv(rec: Record, img: BootImage, qemu: Qemu = OLD) -> str:
    return " ".join(command_line(machine_for(rec, img, PORTS, Folder(Path("/g"))), qemu))


def test_only_this_host_reaches_the_guest_and_only_port_22() -> None:
    line = argv(record(), image(kernel=Path("/k"), initrd=Path("/i")))
    assert "restrict=on,hostfwd=tcp:127.0.0.1:2222-169.254.118.15:22" in line
    assert "restrict=off" in argv(record(internet=True), image(kernel=Path("/k"), initrd=Path("/i")))


def test_its_own_archive_is_booted_and_an_old_qemu_gets_no_msix_under_tcg() -> None:
    tiny = image(kernel=Path("/k"), initrd=Path("/i"))
    line = argv(record(), tiny)
    assert "-kernel /k -initrd /g/initrd" in line
    assert "-smp 1,maxcpus=2" in line
    assert "mac=52:54:00:00:00:01,romfile=,rx_queue_size=1024,tx_queue_size=1024,vectors=0" in line
    assert "ivshmem-doorbell,id=ivs1,vectors=5" in line
    assert "-smp 4,maxcpus=4" in argv(record(cpus=4), tiny, NEW)


def test_a_cloud_image_boots_from_its_disk_with_the_seed_behind_it() -> None:
    line = argv(record(image="./x", disks=["1G"]), image("cloud", disk=Path("/c/root.qcow2")))
    assert "-kernel" not in line
    assert "file=/g/root.qcow2,format=qcow2,readonly=off" in line
    assert (
        line.index("root.qcow2")
        < line.index("/g/seed.iso,format=raw,readonly=on")
        < line.index("/g/disk0.qcow2")
    )


@pytest.mark.needs("py:lxml", "/usr/share/libvirt/schemas/domain.rng")
def test_a_domain_conforms_with_libvirts_schema_and_its_ports_can_be_detached() -> None:
    from vpt.libvirt_plugin import rules

    rec = record(via="libvirt", image="debian", append="a='b' & c")
    machine = machine_for(
        rec,
        image("debian", disk=Path("/d"), kernel=Path("/k"), initrd=Path("/i")),
        PORTS,
        Folder(Path("/g & h")),
    )
    xml = domain_xml(rec, machine, PORTS, OLD, Folder(Path("/g & h")))
    rules.validate(xml)
    rules.check_domain(xml)
    assert [plug.name for plug in plugs_in(xml)] == ["a", "b"]
    assert "<vcpu current='1'>2</vcpu>" in xml


# ---- cache and records ----


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.native  # qemu-img was not built with sanitizers, and stands still with them loaded
@pytest.mark.needs("qemu-img")
def test_a_cloud_image_is_known_by_its_content_and_kept_while_a_guest_needs_it(cache: Path) -> None:
    one, same, other = (cache / name for name in ("one.raw", "same.raw", "other.raw"))
    one.write_bytes(b"a" * 510 + b"\x55\xaa")
    same.write_bytes(one.read_bytes())
    other.write_bytes(b"b" * 510 + b"\x55\xaa")
    first = images.build_cloud(images.Cloud(one))
    assert images.build_cloud(images.Cloud(same)) == first
    assert images.build_cloud(images.Cloud(one), fresh=True).created > first.created
    first = images.find(first.name)
    assert images.build_cloud(images.Cloud(other)).name != first.name
    with_data = cache / "user-data"
    with_data.write_text("#cloud-config\n")
    assert images.build_cloud(images.Cloud(one, user_data=with_data)).name != first.name
    assert len(images.listed()) == 3
    assert images.find(first.name) == first
    with pytest.raises(UsageError, match="3 images begin with"):
        images.find("cloud")
    with pytest.raises(NotFoundError):
        images.find("debian")

    guest = cache / "guest"
    guest.mkdir()
    (guest / "root.qcow2").touch()
    images.hold(first, guest)
    with pytest.raises(ConflictError, match="layer over the image"):
        images.remove(first.name)
    with pytest.raises(ConflictError, match="layer over the image"):
        images.build_cloud(images.Cloud(one), fresh=True)
    (guest / "root.qcow2").unlink()
    images.remove(first.name)
    assert first.name not in [found.name for found in images.listed()]


def test_what_is_no_image_is_said_and_not_kept(cache: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        images.build_cloud(images.Cloud(cache / "absent"))
    random = cache / "random"
    for data in (b"", b"\x55\xaa", os.urandom(510) + b"no", b"#cloud-config\n" * 100):
        random.write_bytes(data)
        with pytest.raises(UsageError, match="is no disk image"):
            images.build_cloud(images.Cloud(random))
    assert images.listed() == []


def test_a_build_that_fails_leaves_nothing_in_the_cache(cache: Path) -> None:
    def fail(folder: Path) -> BootImage:
        (folder / "half").touch()
        raise MissingError("no room")

    with pytest.raises(MissingError):
        images.keep("tiny-0", fail, fresh=False)
    assert [path.name for path in (cache / "cache/vpt/images").iterdir()] == ["lock"]


def test_records_come_back_and_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.names() == []
    with store.changing():
        for name in ("vm10", "vm2", "a"):
            store.save(record().model_copy(update={"config": VmConfig(name=name)}))
    assert store.names() == ["a", "vm2", "vm10"]
    assert store.load("vm2").config == VmConfig(name="vm2")
    store.folder("a").write_private(store.folder("a").login_key, b"secret")
    assert stat.S_IMODE(os.stat(store.folder("a").login_key).st_mode) == 0o600
    store.remove("a")
    assert not store.folder("a").path.exists()
    with pytest.raises(NotFoundError, match="no guest 'a'"):
        store.load("a")


def test_waiting_says_which_sign_was_missing_and_shows_the_console(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.write_text("Booting\n\x1b[2JLinux\n")
    with pytest.raises(TimeoutExpired, match="'vpt-guest-ready' on its console") as caught:
        ready.wait_ready("g", console, 1, lambda: True, 0.2)
    assert caught.value.hint == "its console ends with:\nBooting\nLinux"
    console.write_text("Booting\n[    1.5] Kernel panic - not syncing: VFS\n")
    with pytest.raises(GuestError, match="its kernel panicked"):
        ready.wait_ready("g", console, 1, lambda: True, 60)
    with pytest.raises(GuestError, match="ended while it was waited for"):
        ready.wait_ready("g", tmp_path / "absent", 1, lambda: False, 60)
    console.write_text("vpt-guest-ready\n")
    with pytest.raises(TimeoutExpired, match=r"an ssh banner on 127\.0\.0\.1 port 1"):
        ready.wait_ready("g", console, 1, lambda: True, 0.2)


def test_a_suite_that_debian_does_not_have_is_named_with_those_it_has() -> None:
    """Before anything is built or fetched. What another mirror has, only that knows."""
    with pytest.raises(UsageError, match="no release 'bookwrm'") as caught:
        debian.build_debian(debian.Debian(suite="bookwrm"))
    assert "did you mean bookworm?" in str(caught.value.hint)
    for known in ("trixie", "sid", "stable", "--mirror"):
        assert known in str(caught.value.hint)


def test_what_distro_info_knows_is_a_suite_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "debian.csv"
    monkeypatch.setattr(debian, "_DISTRO_INFO", file)
    with pytest.raises(UsageError):
        debian._check_suite("duke")
    file.write_text("version,codename,series,created\n15,Duke,duke,2027-08-01\n,Sid,sid,1993-08-16\n")
    debian._check_suite("duke")
