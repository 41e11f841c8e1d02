# SPDX-License-Identifier: BSD-2-Clause
"""What crosses the control socket, and what the journal remembers, as pydantic models.

Strict: "5" is no number, unknown keys are errors. Limits that the data plane also checks stand here as well,
so that a user reads a sentence about the option and not an errno.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from vpt.daemon.port_rules import PacketsPerS, RatesConfig, StormConfig, VlanConfig

__all__ = [
    "Acknowledged",
    "AddPort",
    "AddSwitch",
    "ApplyRequest",
    "CaptureList",
    "CaptureStart",
    "CaptureView",
    "ChangeStep",
    "Configuration",
    "DelPort",
    "DelSwitch",
    "Empty",
    "EverythingView",
    "MacList",
    "MacView",
    "MethodList",
    "MethodView",
    "NullableName",
    "PolicyConfig",
    "PortAdd",
    "PortConfig",
    "PortDetail",
    "PortKind",
    "PortList",
    "PortName",
    "PortRemove",
    "PortSet",
    "PortView",
    "SetPort",
    "SetSwitch",
    "StatsView",
    "Status",
    "StopRequest",
    "SwitchAdd",
    "SwitchConfig",
    "SwitchList",
    "SwitchName",
    "SwitchRemove",
    "SwitchSet",
    "SwitchView",
    "explain",
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
_OWNER = r"^(libvirt|qmp):[^\x00-\x1f\x7f]{1,200}$"
# What a value must look like, for people.
_IN_WORDS = {
    _NAME: "1 to 31 letters, digits, _ . -",
    _OCTAL: "permissions in octal, such as 0660",
    _IFNAME: "1 to 15 characters, none of them a space, / : or %",
    _OWNER: "libvirt:WHICH:UUID, or qmp:PATH of a QEMU's QMP socket",
}

Name = Annotated[str, Field(pattern=_NAME, description=_IN_WORDS[_NAME])]
Mac = Annotated[str, AfterValidator(_check_mac), Field(description="unicast MAC address")]
Octal = Annotated[str, Field(pattern=_OCTAL, description=_IN_WORDS[_OCTAL])]
Owner = Annotated[str, Field(pattern=_OWNER, description=_IN_WORDS[_OWNER])]
MacAge = Annotated[int, Field(ge=1, le=86400)]
Mtu = Annotated[int, Field(ge=68, le=65535)]
Microseconds = Annotated[int, Field(ge=0, le=1_000_000)]
PortKind = Literal["passthrough", "vhost-user", "app", "tap", "null"]
Link = Literal["up", "down"]

RING_KINDS: tuple[PortKind, ...] = ("passthrough", "app")
SOCKET_KINDS: tuple[PortKind, ...] = ("passthrough", "vhost-user", "app")
MAX_PAIRS: dict[PortKind, int] = {"passthrough": 32, "app": 32, "vhost-user": 128, "tap": 1, "null": 1}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Empty(_Strict):
    """Nothing."""


class PolicyConfig(_Strict):
    """When the host's side of a port notifies, spins or sleeps."""

    kind: Literal["poll", "sleep", "notify", "adaptive"] = "adaptive"
    spin_us: Microseconds = Field(
        default=50, description="adaptive: how long to spin before arming and sleeping"
    )
    sleep_us: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=50, description="sleep: how long to sleep when idle"
    )


class SwitchConfig(_Strict):
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


class PortConfig(_Strict):
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

    @model_validator(mode="after")
    def _fits_kind(self) -> PortConfig:
        limit = MAX_PAIRS[self.kind]
        if self.pairs > limit:
            raise ValueError(
                f"a {self.kind} port has at most {limit} queue pair{'s' if limit > 1 else ''},"
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


# ---- requests ----


class SwitchAdd(SwitchConfig):
    may_exist: bool = Field(default=False, description="succeed if there is one with the same settings")

    def config(self) -> SwitchConfig:
        return SwitchConfig.model_validate(self.model_dump(exclude={"may_exist"}))


class SwitchSet(_Strict):
    """What may change while packets flow. Absent: as it is."""

    name: Name
    mac_age_s: MacAge | None = None
    isolation: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> SwitchSet:
        if not self.model_fields_set - {"name"}:
            raise ValueError("nothing to change; give mac_age_s or isolation")
        return self


class SwitchRemove(_Strict):
    name: Name
    if_exists: bool = Field(default=False, description="succeed if there is none")


class SwitchName(_Strict):
    name: Name


class PortAdd(PortConfig):
    may_exist: bool = Field(default=False, description="succeed if there is one with the same settings")
    owner: Owner | None = Field(
        default=None, description="the VM that the port was made for, and must not outlive; none: it stays"
    )

    def config(self) -> PortConfig:
        return PortConfig.model_validate(self.model_dump(exclude={"may_exist", "owner"}))


class PortRemove(_Strict):
    name: Name
    if_exists: bool = Field(default=False, description="succeed if there is none")


class PortName(_Strict):
    name: Name


class NullableName(_Strict):
    switch: Name | None = Field(default=None, description="only the ports of this switch")


class StormSet(_Strict):
    """Limits that are to change."""

    broadcast: PacketsPerS | None = None
    multicast: PacketsPerS | None = None
    unknown: PacketsPerS | None = None


class PortSet(_Strict):
    """What may change while packets flow. Absent: as it is."""

    name: Name
    link: Link | None = None
    policy: Literal["poll", "sleep", "notify", "adaptive"] | None = None
    spin_us: Microseconds | None = None
    sleep_us: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    vlan: VlanConfig | None = Field(default=None, description="null: all VLANs, with their tags")
    isolated: bool | None = Field(default=None, description="null: as the switch says")
    anti_spoofing: bool | None = None
    rate: RatesConfig | None = Field(
        default=None, description="the directions that it has; null for one: no limit there"
    )
    storm: StormSet | None = None

    @model_validator(mode="after")
    def _something(self) -> PortSet:
        if not self.model_fields_set - {"name"}:
            raise ValueError(f"nothing to change; give one of {', '.join(list(type(self).model_fields)[1:])}")
        return self


class CaptureStart(_Strict):
    """Copies of the packets of a port, or of all ports that a switch has and will have."""

    target: Name
    direction: Literal["in", "out", "both"] = Field(
        default="both", description="in: from a port's peer into the switch; out: to the peer"
    )
    filter: list[Annotated[list[int], Field(min_length=4, max_length=4)]] = Field(
        default_factory=list,
        max_length=2048,
        description="classic BPF, as pcap_compile() makes it for Ethernet: instructions [code, jt, jf, k]",
    )
    snaplen: int = Field(default=1 << 18, ge=14, le=1 << 18, description="bytes kept of a packet")
    buffer_bytes: int = Field(
        default=1 << 22, ge=1 << 18, le=1 << 30, description="memory for each worker, a power of two"
    )


class AddSwitch(SwitchConfig):
    action: Literal["add-switch"]


class AddPort(PortConfig):
    action: Literal["add-port"]


class SetSwitch(SwitchSet):
    action: Literal["set-switch"]


class SetPort(PortSet):
    action: Literal["set-port"]


class DelPort(PortName):
    action: Literal["del-port"]


class DelSwitch(SwitchName):
    action: Literal["del-switch"]


ChangeStep = Annotated[
    AddSwitch | AddPort | SetSwitch | SetPort | DelPort | DelSwitch, Field(discriminator="action")
]


class ApplyRequest(_Strict):
    steps: list[ChangeStep] = Field(max_length=16384, description="done in this order")
    progress: bool = Field(
        default=False,
        description="tell of each step before it is done, by a notification progress with step and of; a"
        " client that hangs up meanwhile takes the request back",
    )


class StopRequest(_Strict):
    keep: bool | None = Field(
        default=None,
        description="whether the keeper goes on holding guests' memory; none: as vptd was started",
    )


# ---- results ----


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Acknowledged(_Result):
    """changed is false where an idempotent request found nothing to do."""

    changed: bool


class SwitchView(_Result):
    name: str
    mac_entries: int
    mac_age_s: int
    mtu: int
    isolation: bool
    macs: int
    ports: list[str]


class SwitchList(_Result):
    switches: list[SwitchView]


class MacView(_Result):
    """vlan: 0 for frames without tag, and for a port's own address, which holds in all."""

    mac: str
    vlan: int
    port: str
    age_s: int


class MacList(_Result):
    switch: str
    macs: list[MacView]


class PortView(_Result):
    """state: up (peer there, rings run), down, broken (taken down: reason), failed (not set up: reason)."""

    name: str
    switch: str
    kind: PortKind
    id: int | None
    state: Literal["up", "down", "broken", "failed"]
    reason: str | None
    link: Link
    pairs: int
    mac: str | None
    mtu: int
    policy: PolicyConfig
    vlan: VlanConfig | None
    isolated: bool
    anti_spoofing: bool
    rate: RatesConfig
    storm: StormConfig
    workers: list[int]
    driver: str | None
    socket: str | None
    owner: str | None


class PortDetail(PortView):
    lossless: bool
    max_macs: int
    features: str
    transport: dict[str, JsonValue]
    counters: dict[str, int]


class PortList(_Result):
    ports: list[PortView]


class CaptureView(_Result):
    """socket: where its observer is handed the memory, within 10 s. pid: the observer's, once it has come."""

    id: int
    target: str
    ports: list[str]
    socket: str
    pid: int | None


class CaptureList(_Result):
    captures: list[CaptureView]


class EverythingView(_Result):
    switches: list[SwitchView]
    ports: list[PortView]


class Configuration(_Result):
    """Switches and ports as they were asked for, in the order of their creation."""

    switches: list[SwitchConfig]
    ports: list[PortConfig]
    failed: dict[str, str] = Field(description="ports that could not be set up again, and why")


class StatsView(_Result):
    """Sums over each port's queues since it was created, and each worker's own counters."""

    time: float
    path: str
    ports: dict[str, dict[str, int]]
    workers: list[dict[str, int]]


class KeeperView(_Result):
    pid: int | None
    ports: int


class Status(_Result):
    version: str
    pid: int
    runtime_dir: str
    state_dir: str
    uptime_s: float
    workers: int
    switches: int
    ports: int
    ports_up: int
    clients: int
    keeper: KeeperView | None


class MethodView(_Result):
    name: str
    doc: str
    params: dict[str, Any]
    result: dict[str, Any]


class MethodList(_Result):
    methods: list[MethodView]


def explain(error: ValidationError) -> str:
    """One line for people: where, what, for each thing that is wrong (three at most)."""
    problems = []
    for item in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"])
        words = _IN_WORDS.get(item.get("ctx", {}).get("pattern", ""))
        what = f"must be {words}" if words else item["msg"].removeprefix("Value error, ")
        problems.append(f"{place}: {what}" if place else what)
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
