# SPDX-License-Identifier: BSD-2-Clause
"""The journal is the old one or the new one, and one that is neither is refused with a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vpt.daemon import journal
from vpt.daemon.models import PolicyConfig, PortConfig, SwitchConfig
from vpt.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.json"


def _state() -> journal.State:
    return journal.State(
        switches=[SwitchConfig(name="sw0", mac_entries=64)],
        ports=[
            PortConfig(name="vm1", switch="sw0", kind="vhost-user", mac="52:54:00:00:00:01"),
            PortConfig(
                name="a", switch="sw0", kind="app", policy=PolicyConfig(kind="sleep", sleep_us=7), slots=64
            ),
        ],
    )


def test_what_was_stored_is_loaded(path: Path) -> None:
    journal.store(path, _state())
    assert journal.load(path) == _state()


def test_no_journal_is_an_empty_one(path: Path) -> None:
    assert journal.load(path) == journal.State()


def test_a_store_that_fails_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk shows when the data is synced: before the rename."""
    journal.store(path, _state())

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        journal.store(path, journal.State())
    assert journal.load(path) == _state()


def test_what_a_crash_left_half_written_is_not_looked_at(path: Path) -> None:
    journal.store(path, _state())
    path.with_suffix(".new").write_text('{"schema": "vpt.jou')
    assert journal.load(path) == _state()
    journal.store(path, journal.State())
    assert journal.load(path) == journal.State()


def _edited(**changes: Any) -> str:
    content = {"schema": "vpt.journal/v1", **_state().model_dump(mode="json")}
    return json.dumps(content | changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("\0" * 512, "not JSON"),
        ("[" * 100_000, "not JSON"),
        (_edited()[:-20], "not JSON"),
        ("[]", "schema"),
        (_edited(schema="vpt.journal/v2"), "schema"),
        (_edited(switches=None), "switches"),
        (_edited(extra=1), "extra"),
        (_edited(switches=[]), "switch that is not there"),
        (_edited(switches=[{"name": "sw0"}, {"name": "sw0"}], ports=[]), "twice"),
        (_edited(switches=[{"name": "sw0"}, {"name": "a"}]), "twice"),
        (_edited(ports=[{"name": "x", "switch": "sw0", "kind": "app", "pairs": 99}]), "at most 32"),
    ],
)
def test_a_damaged_journal_is_refused_with_a_way_out(path: Path, text: str, says: str) -> None:
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        journal.load(path)
    assert caught.value.code == "journal"
    assert says in caught.value.message
    assert caught.value.hint is not None
    assert f"mv {path}" in caught.value.hint


def test_bytes_that_are_no_text_are_damage_too(path: Path) -> None:
    path.write_bytes(b'{"schema": "\xff"}')
    with pytest.raises(UsageError, match="not JSON"):
        journal.load(path)


def test_the_journal_of_an_older_vptd_is_read(tmp_path: Path) -> None:
    """Written before there were VLANs, rates, and switches with an MTU."""
    policy = {"kind": "adaptive", "spin_us": 50, "sleep_us": 50}
    port = {
        "name": "p",
        "switch": "sw0",
        "kind": "null",
        "pairs": 1,
        "mac": None,
        "mtu": 1500,
        "policy": policy,
    }
    rest = {"worker": None, "lossless": False, "touch": True, "max_macs": 1024, "link": "up", "socket": None}
    old = {"socket_mode": "0600", "slots": None, "buf_size": None, "ifname": None}
    switch = {"name": "sw0", "mac_entries": 4096, "mac_age_s": 300}
    content = {"schema": "vpt.journal/v1", "switches": [switch], "ports": [port | rest | old]}
    path = tmp_path / "journal.json"
    path.write_text(json.dumps(content))
    state = journal.load(path)
    assert (state.switches[0].mtu, state.switches[0].isolation) == (1500, False)
    assert (state.ports[0].vlan, state.ports[0].isolated, state.ports[0].rate.tx) == (None, None, None)
    journal.store(path, state)
    assert journal.load(path) == state
