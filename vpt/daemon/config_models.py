# SPDX-License-Identifier: BSD-2-Clause
"""Switches and ports as they were asked for: in requests to add one, in the journal, in a topology.

Strict: "5" is no number, unknown keys are errors. Limits that the data plane also checks stand here as well,
so that a user reads a sentence about the option and not an errno.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from vpt.daemon import owners
from vpt.daemon.port_rules import RatesConfig, StormConfig, Strict, VlanConfig

__all__ = [
    "IN_WORDS",
    "MAX_PAIRS",
    "RING_KINDS",
    "SOCKET_KINDS",
    "Link",
    "MacAge",
    "Microseconds",
    "Mtu",
    "Name",
    "Octal",
    "Owner",
    "PolicyConfig",
    "PortConfig",
    "PortKind",
    "SwitchConfig",
    "sentence",
]

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


def _check_mac(value: str) -> str:
    mac = value.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{value!r} is no MAC address; they look like 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1:
        raise ValueError(
            f"{mac} is a multicast address, which no port can have; clear the lowest bit of the first byte"
        )
    if mac == "00:00:00:00:00:00":
        raise ValueError("00:00:00:00:00:00 means no address; leave the option out instead")
    return mac


_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,30}$"
_OCTAL = r"^0?[0-7]{3}$"
_IFNAME = r"^[^\s/:%]{1,15}$"
# What a value must look like, for people.
IN_WORDS = {
    _NAME: "1 to 31 letters, digits, _ . -",
    _OCTAL: "permissions in octal, such as 0660",
    _IFNAME: "1 to 15 characters, none of them a space, / : or %",
    owners.PATTERN: owners.IN_WORDS,
}


def sentence(found: Mapping[str, Any]) -> str:
    """What is wrong with a value, for people: of an item of pydantic's ValidationError.errors()."""
    pattern = found.get("ctx", {}).get("pattern")
    if pattern in IN_WORDS:
        return f"must be {IN_WORDS[pattern]}"
    if found["type"] == "model_type":
        return "must be a mapping"
    return re.sub(r"^\w+ should ", "must ", found["msg"].removeprefix("Value error, "))


Name = Annotated[str, Field(pattern=_NAME, description=IN_WORDS[_NAME])]
Mac = Annotated[str, AfterValidator(_check_mac), Field(description="unicast MAC address")]
Octal = Annotated[str, Field(pattern=_OCTAL, description=IN_WORDS[_OCTAL])]
Owner = Annotated[str, Field(pattern=owners.PATTERN, description=owners.IN_WORDS)]
MacAge = Annotated[int, Field(ge=1, le=86400)]
Mtu = Annotated[int, Field(ge=68, le=65535)]
Microseconds = Annotated[int, Field(ge=0, le=1_000_000)]
PortKind = Literal["passthrough", "vhost-user", "app", "tap", "null"]
Link = Literal["up", "down"]

RING_KINDS: tuple[PortKind, ...] = ("passthrough", "app")
SOCKET_KINDS: tuple[PortKind, ...] = ("passthrough", "vhost-user", "app")
MAX_PAIRS: dict[PortKind, int] = {"passthrough": 32, "app": 32, "vhost-user": 128, "tap": 1, "null": 1}


class PolicyConfig(Strict):
    """When the host's side of a port notifies, spins or sleeps."""

    kind: Literal["poll", "sleep", "notify", "adaptive"] = "adaptive"
    spin_us: Microseconds = Field(
        default=50, description="adaptive: how long to spin before arming and sleeping"
    )
    sleep_us: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=50, description="sleep: how long to sleep when idle"
    )


class SwitchConfig(Strict):
    """A switch as it was asked for."""

    name: Name
    mac_entries: int = Field(default=4096, ge=64, le=1 << 20, description="MAC table size, a power of two")
    mac_age_s: MacAge = Field(default=300, description="forget an address not seen for so long")
    mtu: Mtu = Field(default=1500, description="of ports that do not say theirs")
    isolation: bool = Field(
        default=False, description="ports that do not say otherwise are isolated from each other"
    )

    @model_validator(mode="after")
    def _power_of_two(self) -> SwitchConfig:
        if self.mac_entries & (self.mac_entries - 1):
            raise ValueError(f"mac_entries is {self.mac_entries}; it must be a power of two such as 4096")
        return self


class PortConfig(Strict):
    """A port as it was asked for."""

    name: Name
    switch: Name
    kind: PortKind
    pairs: int = Field(default=1, ge=1, le=128, description="queue pairs")
    mac: Mac | None = None
    mtu: Mtu | None = Field(default=None, description="largest IP packet; none: the switch's")
    policy: PolicyConfig = PolicyConfig()
    worker: int | None = Field(
        default=None,
        ge=0,
        le=31,
        description="worker that serves it; none: each queue goes to the one with the fewest",
    )
    lossless: bool = Field(
        default=False, description="wait in this port's ring rather than drop when the destination is full"
    )
    touch: bool = Field(default=False, description="null: read each byte")
    max_macs: int = Field(
        default=1024, ge=1, le=1 << 20, description="addresses it may have in the MAC table"
    )
    link: Link = "up"
    socket: str | None = Field(
        default=None, min_length=1, description="where its peer connects; none: RUNTIME/ports/NAME.sock"
    )
    socket_mode: Octal = "0600"
    slots: int | None = Field(
        default=None, ge=64, le=32768, description="passthrough, app: slots of each ring"
    )
    buf_size: int | None = Field(
        default=None, ge=256, le=65472, multiple_of=64, description="passthrough, app: bytes per buffer"
    )
    ifname: Annotated[str, Field(pattern=_IFNAME)] | None = Field(
        default=None, description="tap: name of the interface"
    )
    vlan: VlanConfig | None = Field(default=None, description="none: all VLANs, with their tags")
    isolated: bool | None = Field(
        default=None, description="exchange packets only with ports that are not; none: as the switch says"
    )
    anti_spoofing: bool = Field(default=False, description="its peer may send from its mac only")
    rate: RatesConfig = RatesConfig()
    storm: StormConfig = StormConfig()

    @field_validator("socket")
    @classmethod
    def _one_spelling(cls, value: str | None) -> str | None:
        """Without // and /./. What .. leads to, only the file system knows."""
        return None if value is None else re.sub("^//+", "/", str(PurePosixPath(value)))

    @model_validator(mode="after")
    def _fits_kind(self) -> PortConfig:
        limit = MAX_PAIRS[self.kind]
        if self.pairs > limit:
            raise ValueError(
                f"a port of kind {self.kind} has at most {limit} queue pair{'s' if limit > 1 else ''},"
                f" not {self.pairs}"
            )
        for option, kinds in _ONLY_FOR.items():
            if getattr(self, option) not in (None, False) and self.kind not in kinds:
                raise ValueError(f"{option} is for ports of kind {' or '.join(kinds)}, not {self.kind}")
        if self.socket is not None and not self.socket.startswith("/"):
            raise ValueError("socket must be an absolute path: vptd has another working folder than you")
        if self.anti_spoofing and self.mac is None:
            raise ValueError("anti_spoofing needs a mac: the one address that its peer may send from")
        return self

    def on(self, switch: SwitchConfig) -> PortConfig:
        """With what the port leaves to its switch filled in."""
        mtu = switch.mtu if self.mtu is None else self.mtu
        isolated = switch.isolation if self.isolated is None else self.isolated
        return self.model_copy(update={"mtu": mtu, "isolated": isolated})


_ONLY_FOR: dict[str, tuple[PortKind, ...]] = {
    "touch": ("null",),
    "socket": SOCKET_KINDS,
    "slots": RING_KINDS,
    "buf_size": RING_KINDS,
    "ifname": ("tap",),
}
