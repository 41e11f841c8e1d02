# SPDX-License-Identifier: BSD-2-Clause
"""What may be asked for: the limits of switches and ports, and the sentences that say so."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from vpt.daemon.models import PortAdd, PortSet, SwitchAdd, explain


def port(**options: Any) -> PortAdd:
    return PortAdd.model_validate({"name": "p", "switch": "s", "kind": "passthrough", **options})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mac": "01:00:5e:00:00:01"}, "multicast"),
        ({"mac": "ff:ff:ff:ff:ff:ff"}, "multicast"),
        ({"mac": "00:00:00:00:00:00"}, "no address"),
        ({"mac": "52:54:00:12:34"}, "no MAC address"),
        ({"mac": "52:54:00:12:34:5g"}, "no MAC address"),
        ({"mac": "٥2:54:00:12:34:56"}, "no MAC address"),
        ({"name": ""}, "name"),
        ({"name": "-x"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "x" * 32}, "name"),
        ({"kind": "pipe"}, "kind"),
        ({"pairs": 0}, "pairs"),
        ({"pairs": 33}, "at most 32"),
        ({"kind": "vhost-user", "pairs": 129}, "pairs"),
        ({"kind": "tap", "pairs": 2}, "at most 1 queue pair"),
        ({"pairs": "1"}, "pairs"),
        ({"pairs": True}, "pairs"),
        ({"mtu": 67}, "mtu"),
        ({"mtu": 65536}, "mtu"),
        ({"policy": {"kind": "lazy"}}, "policy.kind"),
        ({"policy": {"kind": "sleep", "sleep_us": 0}}, "policy.sleep_us"),
        ({"policy": {"spin_us": 1_000_001}}, "policy.spin_us"),
        ({"slots": 63}, "slots"),
        ({"slots": 1 << 20}, "slots"),
        ({"buf_size": 257}, "buf_size"),
        ({"touch": True}, "touch is for ports of kind null"),
        ({"ifname": "tap0"}, "ifname is for ports of kind tap"),
        ({"kind": "null", "socket": "/x"}, "socket is for ports"),
        ({"kind": "vhost-user", "slots": 256}, "slots is for ports"),
        ({"socket": "x.sock"}, "absolute"),
        ({"socket_mode": "888"}, "socket_mode"),
        ({"kind": "tap", "ifname": "a/b"}, "ifname"),
        ({"kind": "tap", "ifname": "x" * 16}, "ifname"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_port_that_can_not_be_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        port(**options)
    assert says in explain(caught.value)


def test_a_mac_is_kept_in_one_notation() -> None:
    assert port(mac="52-54-00-AB-CD-EF").mac == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize("entries", [0, 63, 100, 1 << 21, -64])
def test_a_mac_table_has_a_size_that_is_a_power_of_two(entries: int) -> None:
    with pytest.raises(ValidationError):
        SwitchAdd(name="s", mac_entries=entries)


def test_a_change_changes_something() -> None:
    with pytest.raises(ValidationError) as caught:
        PortSet(name="p")
    assert "nothing to change" in explain(caught.value)


def test_an_explanation_stays_short_however_much_is_wrong() -> None:
    with pytest.raises(ValidationError) as caught:
        PortAdd.model_validate({f"key{i}": i for i in range(100)})
    assert "more)" in explain(caught.value)
    assert len(explain(caught.value)) < 300
