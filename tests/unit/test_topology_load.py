# SPDX-License-Identifier: BSD-2-Clause
"""Topology files: what is read from good ones, and where and how bad ones are refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.daemon.models import PolicyConfig, PortConfig, SwitchConfig
from vpt.errors import EXIT_USAGE, TopologyError
from vpt.topology import Wanted, as_data, as_yaml, json_schema, load

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = sorted((REPOSITORY / "docs/examples").glob("*.yaml"))
PORTS_DIR = Path("/run/vpt/ports")


def read(text: str, ports_dir: Path = PORTS_DIR) -> Wanted:
    return load(text.encode(), "lab.yaml", ports_dir)


def with_port(*lines: str) -> str:
    """A file whose line 4 is the first of `lines`."""
    return "\n".join(["switches:", "  - name: lab", "ports:", *lines, ""])


def _lines(lines: list[str]) -> bytes:
    return "\n".join(lines).encode()


# ---- good files ----


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_exported_is_what_was_read(path: Path) -> None:
    wanted = load(path.read_bytes(), path.name, PORTS_DIR)
    assert wanted.ports
    assert read(as_yaml(wanted)) == wanted
    assert read(json.dumps(as_data(wanted))) == wanted


def test_every_key_of_a_port_can_be_given() -> None:
    """The file has vptd's own models, so this can only break if somebody copies them."""
    port = PortConfig(
        name="p", switch="lab", kind="app", pairs=2, mac="52:54:00:00:00:01", slots=64, buf_size=512,
        socket="/tmp/p.sock", socket_mode="0660", worker=0, lossless=True, link="down", max_macs=3, mtu=900,
        policy=PolicyConfig(kind="sleep", sleep_us=7),
    )  # fmt: skip
    assert read(as_yaml(Wanted(read("switches: [{name: lab}]").switches, (port,)))).ports == (port,)


def test_one_template_makes_many() -> None:
    text = with_port(
        "  - {name: 'vm{n:03d}', count: 12, first: 9, switch: lab, kind: vhost-user,",
        "     mac: '52:54:00:00:00:{n:02x}'}",
    )
    ports = read(text).ports
    assert [port.name for port in ports][:3] == ["vm009", "vm010", "vm011"]
    assert [port.mac for port in ports][-1] == "52:54:00:00:00:14"
    assert len(ports) == 12


def test_scalars_are_not_those_of_yaml_1_1() -> None:
    """An address is no number to the base of 60, and permissions are no number to the base of 8."""
    port = read(
        with_port(
            "  - name: on",
            "    switch: lab",
            "    kind: vhost-user",
            "    mac: 52:54:00:00:00:01",
            "    socket_mode: 0660",
        )
    ).ports[0]
    assert (port.name, port.mac, port.socket_mode) == ("on", "52:54:00:00:00:01", "0660")


def test_rules_are_read_and_written_in_one_way() -> None:
    port = read(
        with_port(
            PORT + ", mac: '52:54:00:00:00:01', anti_spoofing: true, isolated: false,",
            "     vlan: {trunk: [30, 10-12, 13, 11-20], native: 7},",
            "     rate: {tx: {bits_per_s: 100M, burst_bytes: 64k}, rx: {packets_per_s: 5}}}",
        )
    ).ports[0]
    assert port.vlan is not None
    assert port.vlan.model_dump() == {"access": None, "trunk": ["10-20", 30], "native": 7}
    assert port.rate.tx is not None
    assert (port.rate.tx.bits_per_s, port.rate.tx.burst_bytes) == (100_000_000, 64_000)
    assert port.storm.broadcast == 10_000
    again = yaml.safe_load(as_yaml(Wanted((SwitchConfig(name="lab"),), (port,))))
    assert again["ports"][0]["vlan"] == {"trunk": ["10-20", 30], "native": 7}


def test_empty_sections_are_fine() -> None:
    assert read("switches:\nports: []\n") == Wanted()


# ---- bad files ----

PORT = "  - {name: p, switch: lab, kind: vhost-user"
OTHER = "  - {name: q, switch: lab, kind: vhost-user"

BAD = {
    "no mapping": ("- a\n", "1:1: a topology is a mapping", "begin with"),
    "empty": ("# nothing\n", "1:1: the file is empty", "switches: []"),
    "no yaml": ("switches: [\n", "2:1: no valid YAML", "indentation"),
    "control character": ("switches:\n - name: a\x01b\n", "2:11: no valid YAML", "character"),
    "unknown section": ("vswitches: []\n", "1:1: unknown key 'vswitches'", "did you mean switches?"),
    "domains": ("domains: []\n", "1:1: unknown key 'domains'", "the key is vms"),
    "other schema": ("schema: vpt.topology/v9\n", "1:9: unknown schema 'vpt.topology/v9'", "vpt.topology/v1"),
    "no list": ("switches: {name: lab}\n", "1:11: switches must be a list", "- name: NAME"),
    "no entry": ("switches: [lab]\n", "1:12: an entry must be a mapping", "- name: NAME"),
    "unknown key": (with_port(PORT + ", pair: 2}"), "4:46: unknown key 'pair'", "did you mean pairs?"),
    "vlan as a number": (with_port(PORT + ", vlan: 2}"), "4:52: vlan: must be", "vlan: {access: 2}"),
    "vlan of nothing": (with_port(PORT + ", vlan: {}}"), "4:52: vlan: give either", "--schema"),
    "vlan too high": (with_port(PORT + ", vlan: {access: 4095}}"), "4:61: vlan.access:", "it is 4095"),
    "vlan 0": (with_port(PORT + ", vlan: {access: 0}}"), "4:61: vlan.access:", "it is 0"),
    "trunk of words": (with_port(PORT + ", vlan: {trunk: [all]}}"), "4:60: vlan.trunk: 'all'", "--schema"),
    "range backwards": (with_port(PORT + ", vlan: {trunk: [9-2]}}"), "4:60: vlan.trunk: '9-2'", "--schema"),
    "trunk of fractions": (with_port(PORT + ", vlan: {trunk: [1.5]}}"), "4:61: vlan.trunk.0: 1.5", ""),
    "native of an access port": (
        with_port(PORT + ", vlan: {access: 1, native: 2}}"), "4:52: vlan: native is for trunks", "--schema",
    ),
    "key in vlan": (with_port(PORT + ", vlan: {acess: 1}}"), "4:53: unknown key", "did you mean access?"),
    "vlan by another name": (with_port(PORT + ", tag: 5}"), "4:46: unknown key 'tag'", "vlan: {access: 10}"),
    "rate by another name": (
        with_port(PORT + ", rate_limit: 2}"), "4:46: unknown key 'rate_limit'", "rate: {tx: {bits_per_s",
    ),
    "rate of nothing": (with_port(PORT + ", rate: {tx: {}}}"), "4:57: rate.tx: give bits_per_s", "--schema"),
    "rate too low": (with_port(PORT + ", rate: {tx: {bits_per_s: 1k}}}"), "4:70: rate.tx.bits", "1k"),
    "rate as a word": (with_port(PORT + ", rate: {rx: {bits_per_s: fast}}}"), "4:70: rate.rx.bits", "fast"),
    "key in rate": (
        with_port(PORT + ", rate: {tx: {bits_per_sec: 1M}}}"),
        "4:58: unknown key 'bits_per_sec'", "did you mean bits_per_s?",
    ),
    "burst alone": (
        with_port(PORT + ", rate: {tx: {packets_per_s: 9, burst_bytes: 9}}}"),
        "4:57: rate.tx: burst_bytes needs bits_per_s", "--schema",
    ),
    "spoofing without mac": (
        with_port(PORT + ", anti_spoofing: true}"), "4:5: anti_spoofing needs a mac", "--schema",
    ),
    "storm below zero": (with_port(PORT + ", storm: {broadcast: -1}}"), "4:65: storm.broadcast:", "it is -1"),
    "isolation as a word": ("switches: [{name: a, isolation: maybe}]\n", "1:33: isolation:", "'maybe'"),
    "mtu of a switch": ("switches: [{name: a, mtu: 9}]\n", "1:27: mtu:", "it is 9"),
    "key in policy": (
        with_port(PORT + ", policy: {spin: 2}}"), "4:55: unknown key 'spin'", "did you mean spin_us?",
    ),
    "policy as a word": (with_port(PORT + ", policy: poll}"), "4:54: policy:", "policy: {kind: poll}"),
    "missing key": (with_port("  - {name: p, switch: lab}"), "4:5: the key 'kind' is missing", "kind: ..."),
    "kind null": (with_port("  - {name: p, switch: lab, kind: null}"), "4:34: kind:", 'kind: "null"'),
    "word that is no name": (
        "switches: [{name: 'a b'}]\n", "1:19: name: must be 1 to 31 letters, digits, _ . -", "it is 'a b'",
    ),
    "no octal": (
        with_port(PORT + ", socket_mode: rw}"), "4:59: socket_mode: must be permissions in octal", "'rw'",
    ),
    "empty socket": (with_port(PORT + ", socket: ''}"), "4:54: socket: must have at least 1", "--schema"),
    "number as name": ("switches: [{name: 7}]\n", "1:19: name:", 'name: "7"'),
    "word as number": (with_port(PORT + ", pairs: two}"), "4:53: pairs:", "it is 'two'"),
    "too many pairs": (with_port(PORT + ", pairs: 500}"), "4:53: pairs:", "it is 500"),
    "huge number": (
        with_port(PORT + f", pairs: {'9' * 5000}}}"),
        "4:53: a number of too many digits", "quote",
    ),
    "multicast": (
        with_port(PORT + ", mac: 53:54:00:00:00:01}"),
        "4:51: mac: 53:54:00:00:00:01 is a multicast address",
        "--schema",
    ),
    "touch elsewhere": (
        with_port(PORT + ", touch: true}"), "4:5: touch is for ports of kind null", "--schema",
    ),
    "same name": (
        with_port(PORT + "}", PORT + "}"), "5:12: there are two of the name 'p'", "the other is in line 4",
    ),
    "name of a switch": (
        with_port("  - {name: lab, switch: lab, kind: app}"),
        "4:12: there are two of the name 'lab'",
        "line 2",
    ),
    "same key": ("switches: []\nports: []\nswitches: []\n", "3:1: 'switches' appears twice", "line 1"),
    "same key in an entry": ("switches: [{name: a, name: b}]\n", "1:22: 'name' appears twice", "line 1"),
    "no such switch": (
        with_port("  - {name: p, switch: lap, kind: app}"),
        "4:23: port 'p' is on a switch that the file does not have: 'lap'",
        "did you mean lab?",
    ),
    "same mac": (
        with_port(PORT + ", mac: 52:54:00:00:00:01}", OTHER + ", mac: 52-54-00-00-00-01}"),
        "5:51: port 'q' has the mac of port 'p'",
        "its own",
    ),
    "same socket": (
        with_port(PORT + ", socket: /tmp/s}", OTHER + ", socket: /tmp/s}"),
        "5:54: port 'q' has the socket of port 'p': /tmp/s",
        "its own",
    ),
    "same socket, spelt otherwise": (
        with_port(PORT + ", socket: /tmp//s}", OTHER + ", socket: //tmp/./s}"),
        "5:54: port 'q' has the socket of port 'p': /tmp/s",
        "its own",
    ),
    "a socket that another port has by default": (
        with_port(PORT + "}", OTHER + f", socket: {PORTS_DIR}//p.sock}}"),
        f"5:54: port 'q' has the socket of port 'p': {PORTS_DIR}/p.sock",
        "its own",
    ),
    "same interface": (
        with_port(
            "  - {name: t, switch: lab, kind: tap}", "  - {name: u, switch: lab, kind: tap, ifname: t}"
        ),
        "5:47: port 'u' has the ifname of port 't'",
        "its own",
    ),
    "long socket": (
        with_port(PORT + f", socket: /{'s' * 120}}}"), "4:54: socket path of 121 bytes", "shorter",
    ),
    "long interface": (
        with_port("  - {name: abcdefghijklmnopq, switch: lab, kind: tap}"),
        "4:12: 'abcdefghijklmnopq' is too long for the name of an interface",
        "ifname",
    ),
    "no placeholder": (
        with_port(PORT + ", count: 2}"), "4:12: with count, the name must contain {n}", "vm{n}",
    ),
    "no count": (
        with_port("  - {name: 'vm{n}', switch: lab, kind: app}"), "4:12: {n} without count", "count: NUMBER",
    ),
    "unknown placeholder": (
        with_port("  - {name: 'vm{n}', count: 2, switch: '{x}', kind: app}"),
        "4:39: unknown placeholder in '{x}'",
        "{n:02x}",
    ),
    "count of millions": (
        with_port("  - {name: 'vm{n}', count: 5000000, switch: lab, kind: app}"),
        "4:28: count must be a number from 1 to 1024",
        "5000000",
    ),
    "alias": ("switches: &a []\nports: *a\n", "1:11: anchors and aliases are not allowed", "count"),
    "alias bomb": (
        "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\n", "1:4: anchors and aliases", "count",
    ),
    "alias cycle": ("switches: &a [*a]\n", "1:11: anchors and aliases are not allowed", "count"),
    "merge key": ("switches: [{name: a, <<: {name: lab}}]\n", "1:22: unknown key '<<'", "known here"),
    "tag": ("switches: !!python/object/apply:os.system [id]\n", "1:11: tags are not allowed", "remove it"),
    "two documents": ("switches: []\n---\nports: []\n", "2:1: a second document", "remove the line"),
    "deep": ("switches: " + "[" * 100, "1:26: nested deeper than 16 levels", "no topology"),
    "complex key": ("{[a, b]: c}\n", "1:2: a key must be a word", "KEY: VALUE"),
}  # fmt: skip


def test_nesting_without_end_is_refused_by_whoever_sees_it_first() -> None:
    with pytest.raises(TopologyError, match=r"lab\.yaml:1:[0-9]+: .*nest"):
        read("switches: " + "[" * 100_000)


@pytest.mark.parametrize(("text", "message", "hint"), BAD.values(), ids=BAD)
def test_bad_files_are_refused_with_place_and_hint(text: str, message: str, hint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        read(text)
    assert caught.value.message.startswith(f"lab.yaml:{message}")
    assert "\n" not in caught.value.message, "one thing is wrong, so one message"
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert caught.value.exit_code == EXIT_USAGE


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = with_port(PORT + ", pairs: x}", PORT + ", color: red}", *([PORT + ", vlans: 1}"] * 20))
    with pytest.raises(TopologyError) as caught:
        read(text)
    lines = caught.value.message.splitlines()
    assert [line.split(":")[1] for line in lines[:2]] == ["4", "5"]
    assert lines[-1] == "and 12 more"


def test_a_template_is_blamed_once() -> None:
    with pytest.raises(TopologyError) as caught:
        read(with_port("  - {name: 'vm{n}', count: 1000, switch: lab, kind: app, pairs: 99}"))
    assert len(caught.value.message.splitlines()) == 1


def test_templates_do_not_make_millions() -> None:
    """Each is below the limit; the file is refused when there are too many, not when memory is."""
    text = with_port(
        *(f"  - {{name: 'p{i}-{{n}}', count: 1024, switch: lab, kind: app}}" for i in range(5000))
    )
    with pytest.raises(TopologyError, match=r"^lab.yaml:8:5: more than 4096 ports$"):
        read(text)


def test_a_default_socket_can_be_too_long_as_well() -> None:
    """Which only the folder of this vptd decides."""
    text = with_port(PORT + "}")
    read(text)
    with pytest.raises(TopologyError, match=r"lab.yaml:4:12: socket path of"):
        read(text, Path("/" + "d" * 100))


@pytest.mark.parametrize("text", [b"\xff\xfe", b"switches: []\n#" + b"x" * (1 << 20)], ids=["bytes", "long"])
def test_files_that_are_no_text_or_too_long_are_refused(text: bytes) -> None:
    with pytest.raises(TopologyError, match=r"lab.yaml:1:1: "):
        load(text, "lab.yaml", PORTS_DIR)


LINES = st.sampled_from(
    [
        "switches:", "ports:", "  - name: lab", "  - name: 'vm{n}'", "    switch: lab", "    kind: app",
        "    count: 3", "    policy: {kind: poll}", "    mac: 52:54:00:00:00:01", "    first: -1", "  - ",
        "- {", "}", "    pairs: 1e9",
    ]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode), st.lists(LINES).map(_lines)))
@settings(max_examples=500, deadline=None)
def test_anything_is_read_or_refused(text: bytes) -> None:
    """And never an exception of another kind, whose message nobody could use."""
    with contextlib.suppress(TopologyError):
        assert isinstance(load(text, "lab.yaml", PORTS_DIR), Wanted)


# ---- schema ----


def test_the_published_schema_is_the_models() -> None:
    """Made with: vpt apply --schema > docs/topology.schema.json."""
    published = json.loads((REPOSITORY / "docs/topology.schema.json").read_text())
    assert published == json_schema()


def test_the_schema_has_the_keys_that_are_read() -> None:
    ports = json_schema()["properties"]["ports"]["items"]
    assert set(ports["properties"]) == {*PortConfig.model_fields, "count", "first"}
    assert ports["additionalProperties"] is False


def test_the_file_in_the_documentation_is_good() -> None:
    text = (REPOSITORY / "docs/topology.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    assert len(read(text).ports) == 11


def test_the_rules_in_the_documentation_are_good() -> None:
    text = (REPOSITORY / "docs/topology.md").read_text().partition("## What a port may send")[2]
    rules = text.partition("```yaml\n")[2].partition("```")[0]
    web, router = read("switches: [{name: lab}]\n" + rules).ports
    assert (web.storm.broadcast, router.isolated) == (100, False)
