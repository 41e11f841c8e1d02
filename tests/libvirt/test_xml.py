# SPDX-License-Identifier: BSD-2-Clause
"""Ports in a domain's XML: put in and taken out, and the text of before comes back, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.cli import main
from vpt.errors import ConflictError, ExistsError, NotFoundError, UsageError
from vpt.libvirt_plugin import rules
from vpt.libvirt_plugin.xml import Plug, add_port, device_xml, diff, plugs_in, remove_port

DOMAIN = """<!-- made by hand -->
<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name>
  <uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>
  <title>it's &lt;ours&gt; — ü</title>
  <memory unit="MiB">256</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <devices>
    <!-- a comment with <interface> in it -->
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='default'/></interface>
  </devices>
  <q:commandline><q:arg value='a>b'/></q:commandline>
</domain>
"""
PC, Q35 = DOMAIN.format(machine="pc"), DOMAIN.format(machine="q35")
VHOST = Plug("v1", "sw0", "vhost-user", "/run/vpt/ports/v1.sock", "/run/vpt", {"mac": "52:54:00:00:00:01"})
SHMEM = Plug("s.1", "sw0", "passthrough", "/run/vpt/ports/s.1.sock", "/run/vpt", {"pairs": 2, "slots": 256})


@pytest.mark.parametrize("xml", [PC, Q35], ids=["pc", "q35"])
@pytest.mark.parametrize("plug", [VHOST, SHMEM], ids=["vhost-user", "passthrough"])
@pytest.mark.needs("py:lxml", "/usr/share/libvirt/schemas/domain.rng")
def test_what_is_put_in_is_valid_and_keeps_its_intent(xml: str, plug: Plug) -> None:
    changed = add_port(xml, plug)
    rules.validate(changed)
    rules.check_domain(changed)
    assert plugs_in(changed) == [plug]
    assert rules.alias_in(changed, plug.name)
    assert remove_port(changed, plug.name) == xml


@pytest.mark.needs("py:lxml", "/usr/share/libvirt/schemas/domain.rng")
def test_the_schema_is_really_asked() -> None:
    with pytest.raises(UsageError, match="schema"):
        rules.validate(PC.replace("<vcpu>2</vcpu>", "<vcpu>two</vcpu>"))


def test_ivshmem_gets_a_bridge_on_q35_only_and_one_is_enough() -> None:
    assert "controller" not in add_port(PC, SHMEM)
    once = add_port(Q35, SHMEM)
    assert once.count("pcie-to-pci-bridge") == 1
    second = Plug("s2", "sw0", "passthrough", "/run/s2", "/run/vpt")
    twice = add_port(once, second)
    assert twice.count("pcie-to-pci-bridge") == 1
    assert "pcie-to-pci-bridge" in remove_port(twice, SHMEM.name), "the other port still needs it"


MEMORY = st.sampled_from(
    ["", "<memoryBacking/>", "<memoryBacking >\n</memoryBacking>",
     "<memoryBacking><hugepages/></memoryBacking>",
     "<memoryBacking>\n    <access mode='shared'/> </memoryBacking>"]
)  # fmt: skip
METADATA = st.sampled_from(
    [
        "",
        "<metadata/>",
        "<metadata></metadata>",
        "<metadata>\n <a:b xmlns:a='urn:a' c='&gt;'>t</a:b><!-- x -->\n</metadata>",
    ]
)
DEVICES = st.sampled_from(
    ["<devices/>", "<devices   />", "<devices></devices>", "<devices>\n\n</devices>",
     "<devices><!--none--> </devices>", "<devices><emulator>/q</emulator></devices>",
     "<devices>\r\n\t<emulator>/usr/bin/qemu</emulator>\r\n\t</devices>"]
)  # fmt: skip
GAP = st.sampled_from(["", " ", "\n", "\n  ", "\r\n\t", "<!-- ü -->\n"])


@st.composite
def domains(draw: st.DrawFn) -> str:
    machine = draw(st.sampled_from(["pc", "q35"]))
    parts = [
        "<domain type='kvm'>", "<name>a</name>", draw(METADATA), "<memory>1</memory>", draw(MEMORY),
        f"<os><type machine='{machine}'>hvm</type></os>", draw(DEVICES), "</domain>",
    ]  # fmt: skip
    return draw(st.sampled_from(["", "<?xml version='1.0' encoding='latin-1'?>\n"])) + "".join(
        part + draw(GAP) for part in parts
    )


@settings(max_examples=200, deadline=None)
@given(domains(), st.permutations(range(4)), st.permutations(range(4)))
def test_taking_out_what_was_put_in_gives_the_bytes_of_before(
    xml: str, order: list[int], back: list[int]
) -> None:
    plugs = [
        Plug(
            f"p{i}",
            "sw",
            "vhost-user" if i % 2 else "passthrough",
            f"/s{i}",
            "/r",
            {"mac": f"02:00:00:00:00:0{i}"},
        )
        for i in range(4)
    ]
    changed = xml
    for i in order:
        changed = add_port(changed, plugs[i])
    assert {plug.name for plug in plugs_in(changed)} == {"p0", "p1", "p2", "p3"}
    for i in back:
        changed = remove_port(changed, plugs[i].name)
    assert changed == xml


def test_what_others_have_added_since_stays() -> None:
    """libvirt rewrites the text, and people put things beside ours."""
    changed = add_port(PC, VHOST)
    changed = changed.replace("</metadata>", "<x:y xmlns:x='urn:x'/></metadata>")
    changed = changed.replace("</memoryBacking>", "<nosharepages/></memoryBacking>")
    after = remove_port(changed, "v1")
    assert "<x:y xmlns:x='urn:x'/></metadata>" in after
    assert "<nosharepages/></memoryBacking>" in after
    assert "vpt" not in after
    virtiofs = "<filesystem type='mount'><driver type='virtiofs'/></filesystem></devices>"
    assert "<access mode='shared'/>" in remove_port(add_port(PC, VHOST).replace("</devices>", virtiofs), "v1")


def test_metadata_under_another_prefix_is_ours_too() -> None:
    changed = add_port(PC, VHOST)
    for old, new in (("<vpt:", "<z:"), ("</vpt:", "</z:"), ("xmlns:vpt=", "xmlns:z=")):
        changed = changed.replace(old, new)
    both = add_port(changed, SHMEM)
    assert plugs_in(both) == [VHOST, SHMEM]
    assert remove_port(both, SHMEM.name) == changed


def test_what_contradicts_the_domain_is_refused() -> None:
    private = PC.replace("<vcpu>", "<memoryBacking><access mode='private'/></memoryBacking><vcpu>")
    with pytest.raises(ConflictError, match="private"):
        add_port(private, VHOST)
    with pytest.raises(ExistsError, match="v1"):
        add_port(add_port(PC, VHOST), VHOST)
    with pytest.raises(NotFoundError, match=r"no port 'v2'; it has: v1"):
        remove_port(add_port(PC, VHOST), "v2")
    with pytest.raises(UsageError, match="line 1 column"):
        add_port("<domain><name>", VHOST)
    with pytest.raises(UsageError, match="document type"):
        add_port("<!DOCTYPE domain [<!ENTITY a 'b'>]><domain/>", VHOST)
    with pytest.raises(UsageError, match="<network>"):
        add_port("<network/>", VHOST)


def broken(xml: str) -> str:
    with pytest.raises(ConflictError) as caught:
        rules.check_domain(xml)
    assert caught.value.hint
    return str(caught.value)


def test_rules_find_what_libvirt_lets_through() -> None:
    good = add_port(add_port(PC, VHOST), SHMEM)
    rules.check_domain(good)
    assert "not shared" in broken(good.replace("<access mode='shared'/>", ""))
    assert "52:54:00:aa:bb:cc" in broken(good.replace("52:54:00:00:00:01", "52:54:00:AA:BB:CC"))
    assert "socket" in broken(good.replace("ports/s.1.sock", "ports/v1.sock"))
    assert "no model" in broken(good.replace("<model type='virtio'/>", ""))
    assert "no server" in broken(good.replace("<server path='/run/vpt/ports/s.1.sock'/>", ""))


def live(xml: str, plug: Plug, version: int = 7_002_022) -> str:
    with pytest.raises(ConflictError) as caught:
        rules.check_live(xml, plug, version)
    assert caught.value.hint
    return str(caught.value)


def test_a_running_domain_must_have_room() -> None:
    shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><vcpu>"
    assert "not shared" in live(PC, VHOST)
    rules.check_live(PC.replace("<vcpu>", shared), VHOST, 7_002_022)
    rules.check_live(PC, SHMEM, 7_002_022)
    assert "pcie-root-port" in live(Q35.replace("<vcpu>", shared), VHOST)
    assert "pcie-root-port" in live(Q35, SHMEM)
    port = "<controller type='pci' index='3' model='pcie-root-port'/></devices>"
    room = Q35.replace("</devices>", port)
    assert rules.free_root_ports(room) == [3]
    assert "bus='0x03'" in device_xml(SHMEM, 3)
    assert "do not fit" in live(room, Plug("b", "sw", "passthrough", "/s", "/r", {"slots": 1024}))
    rules.check_live(
        room, Plug("b", "sw", "passthrough", "/s", "/r", {"slots": rules.live_slots(1)}), 7_002_022
    )
    taken = "<hostdev><address type='pci' bus='0x03' slot='0'/></hostdev></devices>"
    assert rules.free_root_ports(room.replace("</devices>", taken)) == []


def test_what_crashes_qemu_under_tcg_is_refused_and_one_cpu_is_warned_of() -> None:
    shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><vcpu>"
    tcg = PC.replace("type='kvm'", "type='qemu'").replace("<vcpu>", shared)
    assert "crashes under TCG" in live(tcg, VHOST)
    rules.check_live(tcg, VHOST, 10_000_002)
    rules.check_live(tcg.replace("'a>b'", "'virtio-net-pci.vectors=0'"), VHOST, 7_002_022)
    assert rules.warnings(tcg) == []
    assert "memory barriers" in rules.warnings(tcg.replace("<vcpu>2", "<vcpu>1"))[0]


def test_a_diff_shows_what_changes_and_no_more() -> None:
    text = diff(PC, add_port(PC, VHOST), "web1")
    assert "+    <interface type='vhostuser'>" in text
    assert not [line for line in text.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert diff(PC, PC, "web1") == ""


def test_names_are_quoted() -> None:
    odd = Plug("a", "sw", "passthrough", '/tmp/it\'s <a> & "b".sock', "/r&r")
    assert plugs_in(add_port(PC, odd)) == [odd]
    assert "&lt;a&gt; &amp;" in device_xml(odd)


def test_render_prints_the_domain_and_takes_the_port_out_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "web1.xml"
    file.write_text(Q35, encoding="utf-8")
    assert main(["--runtime-dir", "/run/x", "libvirt", "render", str(file), "--switch", "sw0"]) == 0
    rendered = capsys.readouterr().out
    (plug,) = plugs_in(rendered)
    assert (plug.name, plug.socket, plug.runtime_dir) == ("web1", "/run/x/ports/web1.sock", "/run/x")
    file.write_text(rendered, encoding="utf-8")
    assert main(["libvirt", "render", str(file), "--remove"]) == 0
    assert capsys.readouterr().out == Q35
    assert main(["libvirt", "render", str(file)]) == 2
    assert "--switch" in capsys.readouterr().err
