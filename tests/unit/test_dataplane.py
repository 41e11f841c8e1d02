# SPDX-License-Identifier: BSD-2-Clause
"""Handles: what they promise before any packet moves, and that they can't be used to reach freed memory."""

from __future__ import annotations

import errno
import gc
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.apps import AppPeer
from vpt.dataplane import (
    App,
    Engine,
    Kind,
    MemRegion,
    Policy,
    Port,
    Reason,
    RegionOptions,
    Switch,
    VnetHdr,
    Vring,
    offload_frames,
    region_create,
    region_size,
    vec_count,
    vhost_features,
    vhost_max_mem_regions,
)
from vpt.errors import ConflictError, DataplaneError, UsageError

VERSION_1 = 1 << 32


@pytest.fixture
def engine(no_leaks: None) -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture
def switch(engine: Engine) -> Switch:
    return engine.add_switch("sw0")


def test_engine_leaves_nothing_behind(no_leaks: None) -> None:
    for _ in range(20):
        with Engine(workers=2) as engine:
            switch = engine.add_switch("sw0")
            for kind in Kind:
                switch.add_port(kind.label, kind)


def test_an_engines_workers_have_their_names_as_soon_as_it_is_there() -> None:
    """Whoever looks for them by name need not wait, however busy the host is."""
    for _ in range(20):
        with Engine(workers=8):
            threads = Path("/proc/self/task").iterdir()
            names = sorted(task.joinpath("comm").read_text().strip() for task in threads)
        assert [name for name in names if name.startswith("vpt-")] == [f"vpt-worker{i}" for i in range(8)]


def test_children_left_to_the_engine_leave_nothing_behind(no_leaks: None) -> None:
    with Engine() as engine:
        peer = AppPeer(engine.add_switch("sw0"), "a")
        peer.connect()
    peer.close()


def test_forgotten_engine_is_closed_and_complained_about(no_leaks: None) -> None:
    engine = Engine()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del engine
        gc.collect()


@pytest.mark.parametrize("workers", [0, 33, -1, 1 << 32])
def test_number_of_workers_is_checked(workers: int, no_leaks: None) -> None:
    with pytest.raises((DataplaneError, UsageError)):
        Engine(workers=workers)


def test_more_cpus_than_workers_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="2 CPUs given for 1 workers"):
        Engine(workers=1, cpus=[0, 1])


def test_event_fd_is_silent_when_nothing_happened(engine: Engine) -> None:
    assert engine.next_event() is None
    assert select.select([engine.event_fd], [], [], 0)[0] == []


PORT_CALLS: list[Callable[[Port], object]] = [
    lambda p: p.set_policy(Policy.poll()),
    lambda p: p.set_link(False),
    lambda p: p.state(),
    lambda p: p.ring_status(),
    lambda p: p.ring_attach(-1, RegionOptions("r"), [-1] * 3, [-1] * 3),
    lambda p: p.vhost_set_features(0),
    lambda p: p.vhost_mem_set([]),
    lambda p: p.vhost_mem_add(MemRegion(0, 0, 0, 0)),
    lambda p: p.vhost_mem_del(MemRegion(0, 0, 0, 0)),
    lambda p: p.vring_start(0, Vring(256, 0, 0, 0, 0)),
    lambda p: p.vring_stop(0),
    lambda p: p.vring_enable(0, True),
    lambda p: p.vring_set_kick(0, -1),
    lambda p: p.vring_set_call(0, -1),
    lambda p: p.vhost_reset(),
    lambda p: p.tap_attach(-1, 0),
]


@pytest.mark.parametrize("end", ["port", "switch", "engine"])
def test_port_whose_owner_is_gone_raises(end: str, switch: Switch) -> None:
    port = switch.add_port("p", Kind.NULL)
    {"port": port.delete, "switch": switch.delete, "engine": switch.engine.close}[end]()
    assert port.deleted
    for call in PORT_CALLS:
        with pytest.raises(ConflictError, match="port p is gone"):
            call(port)
    port.delete()
    assert repr(port).endswith("gone>")


@pytest.mark.parametrize("end", ["switch", "engine"])
def test_switch_whose_owner_is_gone_raises(end: str, switch: Switch) -> None:
    {"switch": switch.delete, "engine": switch.engine.close}[end]()
    for call in (switch.macs, lambda: switch.add_port("p", Kind.NULL)):
        with pytest.raises(ConflictError, match="switch sw0 is gone"):
            call()
    switch.delete()


def test_closed_engine_raises(engine: Engine) -> None:
    engine.close()
    engine.close()
    for call in (engine.next_event, lambda: engine.event_fd, lambda: engine.stats_fd):
        with pytest.raises(ConflictError):
            call()
    with pytest.raises(ConflictError):
        engine.add_switch("sw")


def test_closed_app_raises(switch: Switch) -> None:
    peer = AppPeer(switch, "a")
    app = peer.connect()
    peer.close()
    calls: list[Callable[[], object]] = [
        app.step,
        lambda: app.send(0, bytes(60)),
        lambda: app.recv(0),
        lambda: app.wait(0),
        lambda: app.pairs,
        lambda: app.features,
        lambda: app.intr_fd(0),
    ]
    for call in calls:
        with pytest.raises(ConflictError):
            call()
    app.close()


def test_app_outlives_the_engine(engine: Engine, switch: Switch) -> None:
    """They may live in different processes; in one, the engine must not take the other's mapping along."""
    peer = AppPeer(switch, "a")
    app = peer.connect()
    engine.close()
    assert app.pairs == 1
    assert app.recv(0) is None
    peer.close()


@pytest.mark.parametrize("name", ["", "x" * 32, "ü" * 16, "a\0b"])
def test_names_that_do_not_fit_are_refused(name: str, engine: Engine, switch: Switch) -> None:
    for call in (engine.add_switch, lambda n: switch.add_port(n, Kind.NULL)):
        with pytest.raises(UsageError, match="name"):
            call(name)


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": 0},
        {"pairs": 2},  # of a null port
        {"pairs": 1 << 32},
        {"mtu": 67},
        {"mtu": 65536},
        {"mtu": -1},
        {"worker": 1},
        {"worker": -2},
        {"mac": "01:00:00:00:00:00"},
        {"mac": "52:54:00:00:00"},
        {"mac": "525400000001"},
        {"mac": b"12345"},
        {"policy": Policy.sleep(0)},
        {"policy": Policy.sleep(1_000_001)},
        {"policy": Policy.adaptive(1_000_001)},
    ],
    ids=str,
)
def test_port_options_are_checked(options: dict[str, object], switch: Switch) -> None:
    with pytest.raises((UsageError, DataplaneError)) as caught:
        switch.add_port("p", Kind.NULL, **options)  # type: ignore[arg-type]
    if isinstance(caught.value, DataplaneError):
        assert caught.value.errno == errno.EINVAL
    switch.add_port("p", Kind.NULL)


@pytest.mark.parametrize("entries", [1, 63, 1000, 2 << 20])
def test_mac_table_size_is_checked(entries: int, engine: Engine) -> None:
    with pytest.raises(DataplaneError) as caught:
        engine.add_switch("sw", mac_entries=entries)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.hint


def test_port_ids_are_not_used_twice(switch: Switch) -> None:
    seen = set()
    for _ in range(10):
        port = switch.add_port("p", Kind.NULL)
        seen.add(port.id)
        port.delete()
    assert len(seen) == 10


def test_new_port_is_down_and_not_broken(switch: Switch) -> None:
    for kind in (Kind.PASSTHROUGH, Kind.APP, Kind.VHOST_USER, Kind.TAP):
        state = switch.add_port(kind.label, kind).state()
        assert not state.up
        assert state.reason is Reason.NONE


def test_kind_labels_round_trip_and_others_are_named() -> None:
    assert [Kind.parse(kind.label) for kind in Kind] == list(Kind)
    assert Kind.VHOST_USER.label == "vhost-user"
    with pytest.raises(UsageError) as caught:
        Kind.parse("virtio")
    assert "vhost-user" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": 0},
        {"pairs": 33},
        {"num_slots": 63},
        {"num_slots": 32769},
        {"buf_size": 128},
        {"buf_size": 2100},
        {"buf_size": 65536},
        {"mtu": 65536},
    ],
    ids=str,
)
def test_region_options_are_checked(options: dict[str, int], no_leaks: None) -> None:
    opts = RegionOptions("r", **options)  # type: ignore[arg-type]
    for call in (region_size, region_create):
        with pytest.raises(DataplaneError) as caught:
            call(opts)
        assert caught.value.errno == errno.EINVAL


def test_region_is_a_power_of_two_and_sealed(no_leaks: None) -> None:
    """It becomes a PCI BAR; and a peer must not be able to take memory away under the host."""
    opts = RegionOptions("r", pairs=2, num_slots=300)
    size = region_size(opts)
    assert size & (size - 1) == 0
    fd = region_create(opts)
    try:
        assert os.fstat(fd).st_size == size
        for wrong in (size // 2, size * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, wrong)
    finally:
        os.close(fd)


def test_attach_wants_as_many_eventfds_as_the_region_has_vectors(switch: Switch) -> None:
    port = switch.add_port("p", Kind.APP, pairs=2)
    with pytest.raises(UsageError, match=f"4 file descriptors given, {vec_count(2)} needed"):
        port.ring_attach(-1, RegionOptions("r", pairs=2), [-1] * 4, [-1] * 5)


def test_attach_refuses_what_is_no_region(switch: Switch) -> None:
    peer = AppPeer(switch, "a")
    port = switch.add_port("p", Kind.APP)
    bad = [
        (os.memfd_create("short"), peer.kick_fds),  # neither sealed nor large enough
        (os.dup(peer.region_fd), [peer.region_fd] * 3),  # not eventfds
        (os.dup(peer.region_fd), [-1] * 3),
    ]
    for region, kicks in bad:
        with pytest.raises(DataplaneError) as caught:
            port.ring_attach(region, peer.opts, kicks, peer.intr_fds)
        assert caught.value.errno == errno.EBADF
        os.close(region)
    with pytest.raises(DataplaneError) as caught:
        peer.port.ring_attach(peer.region_fd, peer.opts, peer.kick_fds, peer.intr_fds)
    assert caught.value.errno == errno.EBUSY
    peer.close()


def test_app_refuses_what_is_no_region(no_leaks: None) -> None:
    fd = os.memfd_create("zeros")
    os.ftruncate(fd, 1 << 20)
    with pytest.raises(DataplaneError):
        App(fd, [-1] * 3, [-1] * 3)
    os.close(fd)


def test_app_knows_its_rings(switch: Switch) -> None:
    peer = AppPeer(switch, "a")
    app = peer.connect()
    for ring in (-1, 1, 1 << 32):
        with pytest.raises(UsageError):
            app.send(ring, bytes(60))
        with pytest.raises(UsageError):
            app.recv(ring)
    peer.close()


def test_vhost_features_name_what_the_data_plane_needs() -> None:
    assert vhost_features() & VERSION_1
    assert vhost_max_mem_regions() >= 8


def test_vhost_features_not_offered_are_refused(switch: Switch) -> None:
    port = switch.add_port("p", Kind.VHOST_USER)
    with pytest.raises(DataplaneError) as caught:
        port.vhost_set_features(1 << 63 | VERSION_1)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(UsageError):
        port.vhost_set_features(1 << 64)
    port.vhost_set_features(vhost_features())


def test_stopping_a_ring_that_does_not_run_is_told_apart(switch: Switch) -> None:
    port = switch.add_port("p", Kind.VHOST_USER)
    assert port.vring_stop(0) is None
    port.vhost_reset()


def test_error_says_what_was_tried(switch: Switch) -> None:
    port = switch.add_port("p", Kind.VHOST_USER)
    with pytest.raises(DataplaneError, match="port p: start ring 0: "):
        port.vring_start(0, Vring(256, 0, 0, 0, 0))
    with pytest.raises(UsageError, match="out of range"):
        port.vring_start(0, Vring(1 << 32, 0, 0, 0, 0))


def test_frame_without_offload_comes_back_as_it_is() -> None:
    frame = bytes(range(64))
    assert offload_frames(VnetHdr(), frame, 0) == [frame]


def test_offload_header_that_lies_is_refused() -> None:
    with pytest.raises(DataplaneError) as caught:
        offload_frames(VnetHdr(flags=1, csum_start=60, csum_offset=16), bytes(64), 0)
    assert caught.value.errno == errno.EINVAL
