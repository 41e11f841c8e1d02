# SPDX-License-Identifier: BSD-2-Clause
"""What a port may send and gets: VLANs, isolation, anti-spoofing, rates, storms. Real packets, no VM.

The VLAN rules are held against a model of a few lines (`Model`), written from IEEE 802.1Q, not from the code.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from struct import pack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.apps import BROADCAST, AppPeer, mac
from support.waiting import until
from vpt.dataplane import Engine, Kind, Policy, Rate, Rules, StatsReader
from vpt.errors import DataplaneError

NAMES = "abcd"
MACS = {name: mac(i) for i, name in enumerate(NAMES, 1)}
PLAIN = Rules(broadcast=0)
C_TAG, S_TAG = 0x8100, 0x88A8


class Lab:
    """App ports on one switch, and what each has received."""

    def __init__(self, engine: Engine, names: str = NAMES, **options: object) -> None:
        self.engine = engine
        self.switch = engine.add_switch("sw0")
        self.peers = {name: AppPeer(self.switch, name, **options) for name in names}  # type: ignore[arg-type]
        for peer in self.peers.values():
            peer.connect()
        self._stats = StatsReader(engine.stats_fd)

    def rules(self, **rules: Rules) -> None:
        """These rules for these ports, none for the others."""
        for name, peer in self.peers.items():
            peer.port.set_rules(rules.get(name, PLAIN))

    def counters(self, name: str) -> Counter[str]:
        return self._stats.read().port(self.peers[name].port.id)

    def send(self, name: str, data: bytes) -> dict[str, list[bytes]]:
        """Send, wait until the worker is done with it, and say who got what."""
        before = self.counters(name)["tx_packets"]
        until(lambda: self.peers[name].app.send(0, data), "room in the ring")
        until(lambda: self.counters(name)["tx_packets"] > before, "the worker to take a packet")
        got = {other: list(peer.drain()) for other, peer in self.peers.items()}
        return {other: frames for other, frames in got.items() if frames}

    def close(self) -> None:
        self._stats.close()
        for peer in self.peers.values():
            peer.close()


@pytest.fixture
def lab(no_leaks: None) -> Iterator[Lab]:
    with Engine() as engine:
        lab = Lab(engine)
        lab.rules()
        yield lab
        lab.close()


def tag(vid: int, *, pcp: int = 0, kind: int = C_TAG) -> bytes:
    return pack("!HH", kind, pcp << 13 | vid)


def data(dst: bytes, src: bytes, tags: bytes = b"", size: int = 60) -> bytes:
    return (dst + src + tags + b"\x88\xb5payload").ljust(size + len(tags), b"\0")


# ---- VLANs ----


def test_access_ports_of_different_vlans_do_not_reach_each_other(lab: Lab) -> None:
    lab.rules(a=Rules(access=10), b=Rules(access=10), c=Rules(access=20), d=Rules(access=20))
    frame = data(BROADCAST, MACS["a"])
    assert lab.send("a", frame) == {"b": [frame]}
    assert lab.send("c", data(BROADCAST, MACS["c"])) == {"d": [data(BROADCAST, MACS["c"])]}


def test_a_trunk_gets_tags_and_gives_them(lab: Lab) -> None:
    lab.rules(a=Rules(access=10), b=Rules(access=20), t=PLAIN, c=Rules(trunk=frozenset({10})))
    plain, tagged = data(BROADCAST, MACS["a"]), data(BROADCAST, MACS["a"], tag(10))
    assert lab.send("a", plain) == {"c": [tagged], "d": [tagged]}, "d has no VLANs of its own, so it has all"
    back = data(MACS["a"], MACS["c"], tag(10, pcp=5))
    assert lab.send("c", back) == {"a": [data(MACS["a"], MACS["c"])]}
    assert lab.send("c", data(BROADCAST, MACS["c"], tag(20))) == {}
    assert lab.send("c", data(BROADCAST, MACS["c"])) == {}, "it has no native VLAN"
    assert lab.counters("c")["tx_drop_vlan"] == 2


def test_priority_survives_from_trunk_to_trunk(lab: Lab) -> None:
    trunk = Rules(trunk=frozenset({10, 20}), native=20)
    lab.rules(a=trunk, b=trunk)
    frame = data(BROADCAST, MACS["a"], tag(10, pcp=6))
    assert lab.send("a", frame)["b"] == [frame]
    assert lab.send("a", data(BROADCAST, MACS["a"], tag(20, pcp=6)))["b"] == [data(BROADCAST, MACS["a"])]


def test_an_address_can_be_at_another_port_in_each_vlan(lab: Lab) -> None:
    """Independent learning: a router's one address behind two access ports is no flapping."""
    lab.rules(a=Rules(access=10), b=Rules(access=20), c=Rules(access=10), d=Rules(access=20))
    router = mac(99)
    for name in "ab":
        lab.send(name, data(BROADCAST, router))
    assert lab.send("c", data(router, MACS["c"])) == {"a": [data(router, MACS["c"])]}
    assert lab.send("d", data(router, MACS["d"])) == {"b": [data(router, MACS["d"])]}
    table = {(e.mac, e.vlan, e.port_id) for e in lab.switch.macs() if e.mac == router.hex(":")}
    assert table == {
        (router.hex(":"), vlan, lab.peers[name].port.id) for vlan, name in ((10, "a"), (20, "b"))
    }


@pytest.mark.parametrize(
    ("tags", "counter"),
    [
        (tag(20), "tx_drop_vlan"),
        (tag(10), "tx_drop_vlan"),
        (tag(4095), "tx_drop_vlan"),
        (tag(20) + tag(10), "tx_drop_vlan"),
    ],
    ids=["another VLAN", "its own VLAN", "reserved", "stack"],
)
def test_an_access_port_sends_no_tags(tags: bytes, counter: str, lab: Lab) -> None:
    lab.rules(a=Rules(access=10), b=Rules(access=10), c=Rules(access=20))
    assert lab.send("a", data(BROADCAST, MACS["a"], tags)) == {}
    assert lab.counters("a")[counter] == 1


def test_a_priority_tag_names_no_vlan(lab: Lab) -> None:
    lab.rules(a=Rules(access=10), b=Rules(access=10), c=Rules(trunk=frozenset({10})), d=Rules(access=20))
    got = lab.send("a", data(BROADCAST, MACS["a"], tag(0, pcp=3)))
    assert got == {"b": [data(BROADCAST, MACS["a"])], "c": [data(BROADCAST, MACS["a"], tag(10, pcp=3))]}


def test_a_tag_behind_a_tag_does_not_choose_a_vlan(lab: Lab) -> None:
    """Double tagging: what leaves without the outer tag must not begin with a tag of the sender's choice."""
    lab.rules(
        a=Rules(access=10), b=Rules(trunk=frozenset({20}), native=10), c=Rules(trunk=frozenset({10, 20}))
    )
    stacked = data(BROADCAST, MACS["a"], tag(0) + tag(20))
    kept = data(BROADCAST, MACS["a"], tag(10) + tag(20))
    assert lab.send("a", stacked) == {"c": [kept], "d": [kept]}
    assert lab.counters("b")["rx_drop_vlan"] == 1


@pytest.mark.parametrize("length", [14, 15, 16, 17])
def test_a_tag_that_is_cut_off_is_dropped(length: int, lab: Lab) -> None:
    lab.rules(a=Rules(trunk=frozenset({10})))
    assert lab.send("a", data(BROADCAST, MACS["a"], tag(10))[:length]) == {}
    assert lab.counters("a")["tx_drop_runt"] == 1


def test_a_service_tag_is_payload(lab: Lab) -> None:
    lab.rules(a=Rules(access=10), b=Rules(access=10), c=Rules(trunk=frozenset({10})))
    inner = tag(20, kind=S_TAG)
    got = lab.send("a", data(BROADCAST, MACS["a"], inner))
    assert got == {
        "b": [data(BROADCAST, MACS["a"], inner)],
        "c": [data(BROADCAST, MACS["a"], tag(10) + inner)],
        "d": [data(BROADCAST, MACS["a"], tag(10) + inner)],
    }


def test_without_vlans_tags_pass_as_they_are(lab: Lab) -> None:
    for tags in (tag(0), tag(7), tag(4095), tag(1) + tag(2), tag(1, kind=S_TAG)):
        frame = data(BROADCAST, MACS["a"], tags)
        assert lab.send("a", frame) == {name: [frame] for name in "bcd"}
    cut = data(BROADCAST, MACS["a"], tag(10))[:15]
    assert lab.send("a", cut) == {name: [cut] for name in "bcd"}


def test_a_frame_as_long_as_the_mtu_allows_keeps_all_its_bytes_with_a_tag(lab: Lab) -> None:
    lab.rules(a=Rules(access=10), b=Rules(trunk=frozenset({10})))
    frame = data(MACS["b"], MACS["a"])[:14] + bytes(i & 0xFF for i in range(1500))
    assert lab.send("a", frame)["b"] == [frame[:12] + tag(10) + frame[12:]]
    assert lab.send("b", frame[6:12] + frame[:6] + tag(10) + frame[12:])["a"] == [
        frame[6:12] + frame[:6] + frame[12:]
    ]


def test_a_port_own_address_holds_in_all_vlans(no_leaks: None) -> None:
    with Engine() as engine, contextlib.ExitStack() as undo:
        lab = Lab(engine)
        undo.callback(lab.close)
        own = mac(77)
        lab.switch.add_port("own", Kind.NULL, mac=own)
        lab.rules(a=Rules(trunk=frozenset({10, 20})))
        for vid in (10, 20):
            lab.send("a", data(BROADCAST, own, tag(vid)))
        assert lab.counters("a")["tx_drop_spoofed"] == 2


def test_vlans_that_end_give_back_the_switch_without_them(lab: Lab) -> None:
    lab.rules(a=Rules(access=10), b=Rules(access=20))
    assert "b" not in lab.send("a", data(BROADCAST, MACS["a"]))
    lab.rules()
    frame = data(BROADCAST, MACS["a"], tag(5))
    assert lab.send("a", frame) == {name: [frame] for name in "bcd"}


@dataclass
class Model:
    """802.1Q for these four ports: who gets what."""

    rules: dict[str, Rules]
    learned: dict[tuple[int, bytes], str] = field(default_factory=dict)

    @property
    def aware(self) -> bool:
        return any(r.access or r.trunk is not None for r in self.rules.values())

    def carries(self, name: str, vid: int) -> bool:
        r = self.rules[name]
        if r.access:
            return vid == r.access
        return vid != 4095 if r.trunk is None else vid != 0 and (vid in r.trunk or vid == r.native)

    def native(self, name: str) -> int | None:
        r = self.rules[name]
        return r.access or (0 if r.trunk is None else r.native or None)

    def send(self, name: str, frame: bytes) -> dict[str, list[bytes]]:
        dst, src, rest, tci, vid = frame[:6], frame[6:12], frame[12:], 0, 0
        if self.aware:
            if rest[:2] == b"\x81\x00":
                tci = int.from_bytes(rest[2:4], "big")
                rest = rest[4:]
                if tci & 0xFFF and self.rules[name].access:
                    return {}
            vid = tci & 0xFFF
            if not vid:
                native = self.native(name)
                if native is None:
                    return {}
                vid = native
            if not self.carries(name, vid):
                return {}
        self.learned[vid, src] = name
        at = self.learned.get((vid, dst))
        if at == name:
            return {}
        got = {}
        for other in {at} if at else set(self.rules) - {name}:
            if self.rules[name].isolated and self.rules[other].isolated:
                continue
            bare = vid == self.native(other)
            if self.aware and (not self.carries(other, vid) or (bare and rest[:2] == b"\x81\x00")):
                continue
            put = b"" if bare or not self.aware else pack("!HH", C_TAG, tci & 0xF000 | vid)
            got[other] = [dst + src + put + rest]
        return got


VIDS = st.sampled_from([0, 1, 2, 3, 4094, 4095])
REAL = st.sampled_from([1, 2, 3, 4094])
RULES = st.one_of(
    st.just(PLAIN),
    st.builds(lambda v: replace(PLAIN, access=v), REAL),
    st.builds(
        lambda t, n: replace(PLAIN, trunk=t, native=n),
        st.frozensets(REAL),
        st.sampled_from([0, 1, 2, 3, 4094]),
    ),
)
PORT = st.builds(lambda r, isolated: replace(r, isolated=isolated), RULES, st.booleans())
TAGS = st.lists(
    st.builds(
        lambda vid, pcp, kind: tag(vid, pcp=pcp, kind=kind),
        VIDS,
        st.integers(0, 7),
        st.sampled_from([C_TAG, C_TAG, S_TAG]),
    ),
    max_size=3,
).map(b"".join)
FRAMES = st.tuples(st.sampled_from(NAMES), st.sampled_from([*MACS.values(), BROADCAST]), TAGS)


@pytest.fixture(scope="module")
def one_lab() -> Iterator[Lab]:
    with Engine() as engine:
        lab = Lab(engine, policy=Policy.poll())
        yield lab
        lab.close()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(ports=st.tuples(PORT, PORT, PORT, PORT), frames=st.lists(FRAMES, min_size=1, max_size=8))
def test_frames_go_where_the_standard_says(
    one_lab: Lab, ports: tuple[Rules, ...], frames: list[tuple[str, bytes, bytes]]
) -> None:
    model = Model(dict(zip(NAMES, ports, strict=True)))
    # A change of VLANs has the switch forget what it learned in the example before.
    one_lab.rules(**dict.fromkeys(NAMES, Rules(access=4000)))
    one_lab.rules(**model.rules)
    for name, dst, tags in frames:
        frame = data(dst, MACS[name], tags)
        assert one_lab.send(name, frame) == model.send(name, frame)


# ---- isolation, addresses ----


def test_isolated_ports_reach_only_those_that_are_not(lab: Lab) -> None:
    alone = Rules(isolated=True)
    lab.rules(a=alone, b=alone, c=alone)
    assert lab.send("a", data(BROADCAST, MACS["a"])) == {"d": [data(BROADCAST, MACS["a"])]}
    assert set(lab.send("d", data(BROADCAST, MACS["d"]))) == set("abc")
    lab.send("b", data(BROADCAST, MACS["b"]))
    assert lab.send("a", data(MACS["b"], MACS["a"])) == {}, "also not where the switch knows the address"
    assert lab.counters("a")["tx_drop_isolated"] == 1
    assert lab.send("d", data(MACS["b"], MACS["d"])) == {"b": [data(MACS["b"], MACS["d"])]}


def test_anti_spoofing_lets_a_port_use_its_own_address_only(no_leaks: None) -> None:
    with Engine() as engine, contextlib.ExitStack() as undo:
        lab = Lab(engine, "ab")
        undo.callback(lab.close)
        lab.rules()
        lab.peers["a"].close()
        lab.peers["a"] = AppPeer(lab.switch, "a", mac=MACS["a"])
        lab.peers["a"].connect()
        strange = data(BROADCAST, mac(50))
        assert lab.send("a", strange) == {"b": [strange]}, "off: a port with an address may use others"
        lab.rules(a=Rules(anti_spoofing=True))
        assert lab.send("a", strange) == {}, "also one that was learned a moment ago"
        assert lab.send("a", data(BROADCAST, MACS["a"])) == {"b": [data(BROADCAST, MACS["a"])]}
        assert lab.counters("a")["tx_drop_spoofed"] == 1


def test_rules_that_can_not_be_are_refused(lab: Lab) -> None:
    port = lab.peers["a"].port
    for bad in (
        Rules(anti_spoofing=True),
        Rules(trunk=frozenset(), native=4095),
        Rules(tx=Rate(bits_per_s=7999)),
    ):
        with pytest.raises(DataplaneError):
            port.set_rules(bad)
    assert lab.send("b", data(BROADCAST, MACS["b"]))["a"]


def test_a_change_of_rates_forgets_no_address(lab: Lab) -> None:
    lab.rules(a=Rules(access=10))
    lab.send("a", data(BROADCAST, MACS["a"]))
    table = lab.switch.macs()
    lab.peers["a"].port.set_rules(Rules(access=10, tx=Rate(packets_per_s=100)))
    assert [e.mac for e in lab.switch.macs()] == [e.mac for e in table] != []
    lab.peers["a"].port.set_rules(Rules(access=11, tx=Rate(packets_per_s=100)))
    assert lab.switch.macs() == []


# ---- rates ----


def burst(lab: Lab, name: str, count: int, dst: bytes, size: int = 60) -> None:
    """Send so many at once, and wait until they are taken; what waits in a ring is not."""
    app = lab.peers[name].app
    for i in range(count):
        until(lambda: app.send(0, data(dst, MACS[name], size=size), more=i < count - 1), "room")  # noqa: B023


def test_beyond_its_rate_a_port_loses_packets(lab: Lab) -> None:
    lab.rules(a=Rules(tx=Rate(packets_per_s=1, burst_packets=20)))
    burst(lab, "a", 100, mac(9))
    until(lambda: lab.counters("a")["tx_packets"] == 100, "all to be taken")
    passed = len(list(lab.peers["b"].drain()))
    assert 20 <= passed <= 40, "the burst, one into debt, and what seconds of a slow machine add"
    assert lab.counters("a")["tx_drop_rate"] == 100 - passed


def test_bytes_are_limited_too(lab: Lab) -> None:
    lab.rules(a=Rules(tx=Rate(bits_per_s=8000, burst_bytes=10_000)))
    burst(lab, "a", 100, mac(9), size=1000)
    until(lambda: lab.counters("a")["tx_packets"] == 100, "all to be taken")
    passed = len(list(lab.peers["b"].drain()))
    assert 10 <= passed <= 30


def test_the_rate_toward_a_port_is_its_own(lab: Lab) -> None:
    lab.rules(b=Rules(rx=Rate(packets_per_s=1, burst_packets=5)))
    burst(lab, "a", 60, mac(9))
    until(lambda: lab.counters("a")["tx_packets"] == 60, "all to be taken")
    passed = len(list(lab.peers["b"].drain()))
    assert 5 <= passed <= 25
    assert lab.counters("b")["rx_drop_rate"] == 60 - passed
    assert len(list(lab.peers["c"].drain())) == 60, "a neighbour has no limit"


def test_queues_of_several_workers_share_one_rate(no_leaks: None) -> None:
    with Engine(2) as engine, contextlib.ExitStack() as undo:
        lab = Lab(engine, "ab", pairs=2)
        undo.callback(lab.close)
        lab.rules(a=replace(PLAIN, tx=Rate(packets_per_s=1, burst_packets=40)))
        app, frame = lab.peers["a"].app, data(mac(9), MACS["a"])
        for i in range(200):
            until(lambda: app.send(i % 2, frame), "room")  # noqa: B023
        until(lambda: lab.counters("a")["tx_packets"] == 200, "all to be taken")
        dropped = lab.counters("a")["tx_drop_rate"]
        assert 0 < dropped <= 160
        assert sum(len(list(lab.peers["b"].drain(ring))) for ring in (0, 1)) == 200 - dropped


@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_a_lossless_sender_waits_for_tokens_and_loses_nothing(direction: str, no_leaks: None) -> None:
    with Engine() as engine, contextlib.ExitStack() as undo:
        lab = Lab(engine, "ab", lossless=True)
        undo.callback(lab.close)
        lab.send("b", data(BROADCAST, MACS["b"]))
        rate = Rate(packets_per_s=1000, burst_packets=10)
        lab.peers["a" if direction == "tx" else "b"].port.set_rules(replace(PLAIN, **{direction: rate}))
        total = 150
        lab.send("b", data(BROADCAST, MACS["b"]))
        burst(lab, "a", total, MACS["b"])
        got = [lab.peers["b"].recv() for _ in range(total)]
        assert len(got) == total
        assert lab.counters("a")["tx_blocked"] > 0
        until(lambda: lab.counters("a")["tx_packets"] == total, "the last to be counted")
        drops = sum(n for name in "ab" for key, n in lab.counters(name).items() if "drop" in key)
        assert drops == 0


@pytest.mark.parametrize("policy", [Policy.notify(), Policy.adaptive(0)], ids=["notify", "adaptive"])
def test_a_worker_sleeps_while_a_sender_waits_for_tokens(policy: Policy, no_leaks: None) -> None:
    """And wakes for a neighbour's packet. Loops are counted: a worker that spins makes millions meanwhile."""
    with Engine() as engine, contextlib.ExitStack() as undo, StatsReader(engine.stats_fd) as stats:
        lab = Lab(engine, "abc", lossless=True, policy=policy)
        undo.callback(lab.close)
        lab.send("b", data(BROADCAST, MACS["b"]))
        lab.peers["a"].port.set_rules(replace(PLAIN, tx=Rate(packets_per_s=1, burst_packets=2)))
        burst(lab, "a", 10, MACS["b"])
        until(lambda: lab.counters("a")["tx_blocked"] > 0, "the sender to wait")

        def loops() -> int:
            return stats.read().workers[0].counters["loops"]

        before = loops()
        frame = data(MACS["b"], MACS["c"])
        assert frame in lab.send("c", frame)["b"]
        assert loops() - before < 200
        lab.peers["a"].port.set_rules(PLAIN)
        until(lambda: lab.counters("a")["tx_packets"] == 10, "what waited to go")
        assert stats.read().workers[0].counters["late_wakes"] == 0
        assert lab.counters("c")["tx_packets"] == 1


def test_an_idle_switch_with_limits_sleeps(no_leaks: None) -> None:
    with Engine() as engine, contextlib.ExitStack() as undo, StatsReader(engine.stats_fd) as stats:
        lab = Lab(engine, "ab", policy=Policy.notify())
        undo.callback(lab.close)
        limit = Rate(bits_per_s=1_000_000, packets_per_s=1000)
        for peer in lab.peers.values():
            peer.port.set_rules(Rules(tx=limit, rx=limit, access=5, isolated=True))
        start = stats.read().workers[0].counters
        until(lambda: stats.read().workers[0].counters["sleeps"] > start["sleeps"], "the worker's next sleep")
        end = stats.read().workers[0].counters
        assert end["loops"] - start["loops"] <= 5


# ---- storms ----


def test_a_storm_is_cut_and_others_are_not(lab: Lab) -> None:
    lab.rules(a=Rules(broadcast=20))
    burst(lab, "a", 200, BROADCAST)
    until(lambda: lab.counters("a")["tx_packets"] == 200, "all to be taken")
    dropped = lab.counters("a")["tx_drop_storm"]
    assert len(list(lab.peers["b"].drain())) == 200 - dropped
    assert 0 < dropped <= 180
    burst(lab, "a", 50, mac(9))
    until(lambda: lab.counters("a")["tx_packets"] == 250, "all to be taken")
    assert len(list(lab.peers["b"].drain())) == 50, "an unknown address is no broadcast"


@pytest.mark.parametrize(("limit", "dst"), [("multicast", b"\x01\x00\x5e\x00\x00\x01"), ("unknown", mac(9))])
def test_groups_and_unknown_addresses_have_limits_of_their_own(limit: str, dst: bytes, lab: Lab) -> None:
    lab.rules(a=replace(PLAIN, **{limit: 10}))  # type: ignore[arg-type]
    burst(lab, "a", 100, dst)
    until(lambda: lab.counters("a")["tx_packets"] == 100, "all to be taken")
    assert lab.counters("a")["tx_drop_storm"] > 0
    assert lab.send("a", data(BROADCAST, MACS["a"]))["b"]


def test_a_new_port_has_a_broadcast_limit(no_leaks: None) -> None:
    with Engine() as engine, contextlib.ExitStack() as undo:
        lab = Lab(engine, "ab")
        undo.callback(lab.close)
        sent = 0
        while not lab.counters("a")["tx_drop_storm"]:
            burst(lab, "a", 200, BROADCAST)
            list(lab.peers["b"].drain())
            sent += 200
            assert sent < 1_000_000
