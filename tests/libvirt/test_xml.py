# SPDX-License-Identifier: BSD-2-Clause
"""Ports in a domain's XML: put in and taken out, and the text of before comes back, byte for byte."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpt.cli import main
from vpt.errors import ConflictError, ExistsError, NotFoundError, UsageError
from vpt.libvirt_plugin import _ram_folder, rules
from vpt.libvirt_plugin._domain import Target
from vpt.libvirt_plugin.attach import Request
from vpt.libvirt_plugin.metadata import Plug, left_in, plugs_in
from vpt.libvirt_plugin.xml import add_port, device_xml, diff, remove_port

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


# ---- XML from elsewhere ----

SPACE = st.text(" \t\n", max_size=3) | st.sampled_from(["\r\n", "\r\n\t"])
PRINTABLE = st.characters(
    codec="utf-8", exclude_characters="&<>-]", exclude_categories=["Cc", "Cs", "Co", "Cn"]
)
TEXT = st.text(PRINTABLE, max_size=8)


@st.composite
def attributes(draw: st.DrawFn, *given: tuple[str, str]) -> str:
    """In any quotes, with any space around, with references and what looks like tags in the values."""
    odd = ["a>b", "it's", 'say "x"', "&#10;&lt;devices/&gt;", "ü &amp; 𝕏", "/"]
    more = [(f"q:a{i}", value) for i, value in enumerate(draw(st.lists(st.sampled_from(odd), max_size=2)))]
    text = ""
    for name, value in [*given, *more]:
        quote = '"' if "'" in value else "'" if '"' in value else draw(st.sampled_from("'\""))
        equals = draw(st.sampled_from(["=", " = ", "\n= "]))
        text += draw(st.sampled_from([" ", "\n  ", "\t"])) + f"{name}{equals}{quote}{value}{quote}"
    return text + draw(SPACE)


FOREIGN = st.one_of(
    SPACE,
    TEXT.map(lambda text: f"<!--{text}<devices>-->"),
    TEXT.map(lambda text: f"<![CDATA[<memoryBacking>&{text}]]>"),
    st.sampled_from(
        [
            "<?vpt <devices/> ?>",
            "<q:devices/>",
            "<x:y xmlns:x='urn:vpt:domain:2'><x:ports/></x:y>",
            "<d xmlns='urn:other'><devices/><metadata>&#x41;&amp;</metadata></d>",
            "<q:deep><q:deep><devices><interface/></devices></q:deep></q:deep>",
        ]
    ),
)
MIXED = st.lists(FOREIGN, max_size=3).map("".join)


@st.composite
def element(draw: st.DrawFn, name: str, inside: st.SearchStrategy[str], *given: tuple[str, str]) -> str:
    attrs, content = draw(attributes(*given)), draw(inside)
    if not content and draw(st.booleans()):
        return f"<{name}{attrs}/>"
    return f"<{name}{attrs}>{content}</{name}{draw(SPACE)}>"


BACKING = st.sampled_from(
    ["", "<hugepages/>", "<access mode='shared'/>", "<source type='memfd'/><access mode=\"shared\" />"]
)
BACKED = st.tuples(MIXED, BACKING, MIXED).map("".join)


@st.composite
def domains(draw: st.DrawFn) -> str:
    machine = ("machine", draw(st.sampled_from(["pc", "q35", "pc-q35-7.2"])))
    parts = draw(
        st.permutations(
            [
                "<name>a</name>",
                draw(st.just("") | element("metadata", MIXED)),
                draw(element("memory", st.just("1"))),
                draw(st.just("") | element("memoryBacking", BACKED)),
                f"<os>{draw(element('type', st.just('hvm'), machine))}</os>",
                draw(element("devices", MIXED)),
                draw(MIXED),
            ]
        )
    )
    content = "".join(part + draw(MIXED) for part in parts)
    declaration = draw(st.sampled_from(["", "\ufeff", "<?xml version='1.0' encoding='latin-1'?>\n"]))
    root = draw(attributes(("type", "kvm"), ("xmlns:q", "urn:q")))
    after = draw(st.sampled_from(["", "\n", "<!-- end -->\r\n"]))
    return f"{declaration}<domain{root}>{content}</domain>{after}"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
    assert sorted(plugs_in(changed), key=lambda plug: plug.name) == plugs
    assert foreign_in(changed) == foreign_in(xml), "nothing else is touched while ours is in there"
    for i in back:
        changed = remove_port(changed, plugs[i].name)
    assert changed == xml


def test_what_stands_side_by_side_is_not_written_twice() -> None:
    """Something goes behind <name>, and <devices/> right there gets an inside."""
    xml = "<domain><memory>1</memory><name>a</name><devices/></domain>"
    changed = add_port(xml, VHOST)
    assert (changed.count("<devices"), changed.count("</name><metadata>")) == (1, 1), changed
    assert remove_port(changed, VHOST.name) == xml


def foreign_in(xml: str) -> list[str]:
    """Comments, CDATA, instructions and foreign tags in the order in which they stand."""
    return re.findall(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>|</?(?:q:|x:|d\b)[^>]*>", xml, re.DOTALL)


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


def test_the_device_has_what_vhost_user_needs() -> None:
    """Two queue pairs, rings of 1024, packed where asked for, a connection that is made again."""
    plug = Plug("v1", "sw0", "vhost-user", "/s", "/r", {"mac": "52:54:00:00:00:01", "pairs": 2}, packed=True)
    changed = add_port(Q35, plug)
    assert "<driver queues='2' rx_queue_size='1024' tx_queue_size='1024' packed='on'/>" in changed
    assert "<reconnect enabled='yes' timeout='1'/>" in changed
    assert "<source type='memfd'/>" in changed
    assert "<access mode='shared'/>" in changed
    assert plugs_in(changed) == [plug]
    assert "packed" not in device_xml(VHOST)


NUMA = "<cpu><numa><cell id='0' memory='1' memAccess='{}'/><cell id='1' memory='1'{}/></numa></cpu><vcpu>"


def test_memory_of_numa_cells_is_shared_by_cell() -> None:
    shared = PC.replace("<vcpu>", NUMA.format("shared", " memAccess='shared'"))
    changed = add_port(shared, VHOST)
    assert "<access" not in changed, "it is shared already"
    assert "<source type='memfd'/>" in changed, "it would be in files"
    rules.check_domain(changed)
    assert remove_port(changed, VHOST.name) == shared
    half = PC.replace("<vcpu>", NUMA.format("shared", ""))
    rules.check_domain(add_port(half, VHOST))
    with pytest.raises(ConflictError, match="NUMA"):
        add_port(PC.replace("<vcpu>", NUMA.format("private", "")), VHOST)
    assert "not shared" in broken(changed.replace(" memAccess='shared'/></numa>", "/></numa>"))


BACKINGS = [
    ("<source type='memfd'/><access mode='shared'/>", True),
    ("<hugepages/><access mode='shared'/>", True),
    ("<hugepages><page size='2048' unit='KiB'/></hugepages><access mode='shared'/>", True),
    ("<hugepages/><source type='file'/><access mode='shared'/>", True),
    ("<source type='file'/><access mode='shared'/>", False),
    ("<hugepages><page size='2048' nodeset='0'/></hugepages><access mode='shared'/>", False),
]


@pytest.mark.parametrize("folder", ["disk", "tmpfs"])
@pytest.mark.parametrize(("backing", "memory"), BACKINGS)
def test_memory_that_is_files_on_a_disk_is_refused(
    monkeypatch: pytest.MonkeyPatch, backing: str, memory: bool, folder: str
) -> None:
    """libvirt puts it into memory_backing_dir, which may be on tmpfs; huge pages are on hugetlbfs."""
    monkeypatch.setattr(_ram_folder, "is_memory", lambda: folder == "tmpfs")
    xml = PC.replace("<vcpu>", f"<memoryBacking>{backing}</memoryBacking><vcpu>")
    changed = add_port(xml, VHOST)
    if memory or folder == "tmpfs":
        rules.check_domain(changed)
        rules.check_live(xml, VHOST, 7_002_022)
        return
    with pytest.raises(ConflictError, match="files on a disk") as caught:
        rules.check_domain(changed)
    assert "<source type='memfd'/>" in str(caught.value.hint)
    assert "files on a disk" in live(xml, VHOST)
    rules.check_domain(add_port(xml, SHMEM))
    rules.check_live(xml, SHMEM, 7_002_022)


def test_where_libvirt_puts_the_memory(tmp_path: Path) -> None:
    conf, mounts = tmp_path / "qemu.conf", tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\nnone /ram hugetlbfs rw 0 0\n"
        "tmpfs /over tmpfs rw 0 0\n/dev/vdb /over ext4 rw 0 0\n"
    )
    assert not _ram_folder.is_memory(conf, mounts), "without qemu.conf it is below /var/lib"
    for said, memory in {
        '#memory_backing_dir = "/dev/shm/vm"': False,
        'memory_backing_dir = "/dev/shm/vm"': True,
        'user = "root"\n  memory_backing_dir="/ram"  # huge': True,
        'memory_backing_dir = "/over/vm"': False,
        'memory_backing_dir = "/dev/shmall"': False,
    }.items():
        conf.write_text(said)
        assert _ram_folder.is_memory(conf, mounts) == memory, said


def test_what_contradicts_the_domain_is_refused() -> None:
    private = PC.replace("<vcpu>", "<memoryBacking><access mode='private'/></memoryBacking><vcpu>")
    with pytest.raises(ConflictError, match="private"):
        add_port(private, VHOST)
    with pytest.raises(ExistsError, match="v1"):
        add_port(add_port(PC, VHOST), VHOST)
    with pytest.raises(NotFoundError, match="no port 'v2'") as caught:
        remove_port(add_port(PC, VHOST), "v2")
    assert caught.value.hint == "its vpt ports: v1"
    with pytest.raises(UsageError, match="line 1 column"):
        add_port("<domain><name>", VHOST)
    with pytest.raises(UsageError, match="document type"):
        add_port("<!DOCTYPE domain [<!ENTITY a 'b'>]><domain/>", VHOST)
    with pytest.raises(UsageError, match="<network>"):
        add_port("<network/>", VHOST)
    with pytest.raises(UsageError, match="index='x' of a <controller>"):
        add_port(
            Q35.replace("<devices>", "<devices><controller type='pci' index='x' model='pcie-root'/>"), SHMEM
        )


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
    pairs = replace(VHOST, settings={**VHOST.settings, "pairs": 2})
    assert "several queue pairs" in live(tcg.replace("'a>b'", "'virtio-net-pci.vectors=0'"), pairs)
    late = add_port(tcg, SHMEM)
    shmem = late[late.index("<shmem") : late.index("</shmem>") + len("</shmem>")]
    assert not rules.is_spent(late)
    assert rules.is_spent(late.replace(shmem, ""))
    assert not rules.is_spent(add_port(PC, SHMEM).replace(shmem, ""))
    for eventfds in ("", "12-7 13-8"):
        noted = f"<vpt:left port='s.1' eventfds='{eventfds}'/></vpt:ports>"
        gone = late.replace(shmem, "").replace("</vpt:ports>", noted)
        assert not rules.is_spent(gone), "seen to, or attach will do so"
        assert rules.gone_late(gone) == ({"s.1": eventfds.split()} if eventfds else {})
    assert rules.gone_late(late.replace("</vpt:ports>", noted)) == {}
    assert rules.warnings(tcg) == []
    assert "memory barriers" in rules.warnings(tcg.replace("<vcpu>2", "<vcpu>1"))[0]
    assert "memory barriers" in rules.warnings(tcg.replace("<vcpu>2</vcpu>", ""))[0]


class Running:
    """A running domain as far as its description goes. It says again what it was told to note."""

    def __init__(self, xml: str) -> None:
        self.xml = xml

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return self.xml

    def setMetadata(self, _kind: int, text: str | None, key: str, uri: str, _flags: int) -> None:  # noqa: N802
        named = re.sub(r"<(/?)", rf"<\1{key}:", text or "")
        named = named.replace(f"<{key}:ports", f"<{key}:ports xmlns:{key}='{uri}'", 1)
        self.xml = re.sub("<vpt:ports.*</vpt:ports>", named, self.xml, flags=re.DOTALL)


def test_what_the_running_domain_notes_keeps_what_goes_with_the_last_port() -> None:
    """Or who makes a configuration of it (virsh dumpxml, define) would keep the shared memory for good."""
    target = object.__new__(Target)
    target.lib = SimpleNamespace(VIR_DOMAIN_METADATA_ELEMENT=2, VIR_DOMAIN_AFFECT_LIVE=1)  # type: ignore[assignment]
    target.name, target.domain = "web1", Running(add_port(PC, VHOST))
    target.note_live([VHOST, SHMEM], left={"s.1": ["12-7"]})
    assert plugs_in(target.domain.xml) == [VHOST, SHMEM]
    assert left_in(target.domain.xml) == {"s.1": ["12-7"]}
    target.note_live([VHOST])
    assert left_in(target.domain.xml) == {}
    assert remove_port(target.domain.xml, "v1") == PC
    target.note_live([])
    assert "vpt:" not in target.domain.xml


def test_a_diff_shows_what_changes_and_no_more() -> None:
    text = diff(PC, add_port(PC, VHOST), "web1")
    assert "+    <interface type='vhostuser'>" in text
    assert not [line for line in text.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert diff(PC, PC, "web1") == ""


def test_a_request_to_attach_names_its_fields() -> None:
    """A field that was put in between once moved --packed into another one."""
    with pytest.raises(TypeError, match="positional"):
        Request("web1", "sw0", "vhost-user")  # type: ignore[misc, call-arg]


def test_names_are_quoted() -> None:
    odd = Plug("a", "sw", "passthrough", '/tmp/it\'s <a> & "b".sock', "/r&r")
    assert plugs_in(add_port(PC, odd)) == [odd]
    assert "&lt;a&gt; &amp;" in device_xml(odd)


QEMUS = {
    "it would crash": ("version 7.2.22", 1, "error: this QEMU crashes under TCG"),
    "it does not crash any more": ("version 10.0.2", 0, ""),
    "nobody can ask it": (None, 0, "warning: if its QEMU is older than 10: this QEMU crashes under TCG"),
}


@pytest.mark.native
@pytest.mark.parametrize(("answer", "code", "says"), QEMUS.values(), ids=QEMUS)
def test_render_asks_the_qemu_that_the_domain_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: str | None, code: int, says: str
) -> None:
    qemu, file = tmp_path / "qemu", tmp_path / "web1.xml"
    if answer is not None:
        qemu.write_text(f"#!/bin/sh\necho QEMU emulator {answer}\n")
        qemu.chmod(0o755)
    tcg = PC.replace("type='kvm'", "type='qemu'").replace("/usr/bin/qemu-system-x86_64", str(qemu))
    file.write_text(tcg)
    assert main(["libvirt", "render", str(file), "--switch", "sw0"]) == code
    out, err = capsys.readouterr()
    assert (says in err, bool(out)) == (True, code == 0)
    if not says:
        assert err == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mac", "zz"], "mac: 'zz' is no MAC address"),
        (["--mac", "01:00:5e:00:00:01"], "mac: 01:00:5e:00:00:01 is a multicast address"),
        (["--pairs", "0"], "pairs: must be greater than or equal to 1"),
        (["--slots", "64"], "slots is for ports of kind passthrough or app, not vhost-user"),
        (["--port", "a/b"], "name: must be 1 to 31 letters"),
        (["--kind", "passthrough", "--packed"], "packed virtqueues are for vhost-user ports"),
    ],
)
def test_render_takes_no_port_that_vptd_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    """Or it would come out when the domain is started."""
    file = tmp_path / "web1.xml"
    file.write_text(PC)
    assert main(["libvirt", "render", str(file), "--switch", "sw0", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, f"error: {says}" in err, "hint: " in err) == ("", True, True), err


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_render_prints_the_domain_and_takes_the_port_out_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line_end: str
) -> None:
    file = tmp_path / "web1.xml"
    original = Q35.replace("\n", line_end)
    file.write_bytes(original.encode())
    assert main(["--runtime-dir", "/run/x", "libvirt", "render", str(file), "--switch", "sw0"]) == 0
    rendered = capsys.readouterr().out
    (plug,) = plugs_in(rendered)
    assert (plug.name, plug.socket, plug.runtime_dir) == ("web1", "/run/x/ports/web1.sock", "/run/x")
    file.write_bytes(rendered.encode())
    assert main(["libvirt", "render", str(file), "--remove"]) == 0
    assert capsys.readouterr().out == original
    assert main(["libvirt", "render", str(file)]) == 2
    assert "--switch" in capsys.readouterr().err
