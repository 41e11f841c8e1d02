# SPDX-License-Identifier: BSD-2-Clause
"""What crosses the control socket, as pydantic models: requests and results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from vpt.daemon.config_models import (
    MAX_PAIRS,
    RING_KINDS,
    SOCKET_KINDS,
    Link,
    MacAge,
    Microseconds,
    Mtu,
    Name,
    Owner,
    PolicyConfig,
    PortConfig,
    PortKind,
    SwitchConfig,
    sentence,
)
from vpt.daemon.port_rules import PacketsPerS, RatesConfig, StormConfig, Strict, VlanConfig

__all__ = [
    "MAX_PAIRS",
    "RING_KINDS",
    "SOCKET_KINDS",
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
    "PortCheck",
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


class Empty(Strict):
    """Nothing."""


# ---- requests ----


class SwitchAdd(SwitchConfig):
    may_exist: bool = Field(default=False, description="succeed if there is one with the same settings")

    def config(self) -> SwitchConfig:
        return SwitchConfig.model_validate(self.model_dump(exclude={"may_exist"}))


class SwitchSet(Strict):
    """What may change while packets flow. Absent: as it is."""

    name: Name
    mac_age_s: MacAge | None = None
    isolation: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> SwitchSet:
        if not self.model_fields_set - {"name"}:
            raise ValueError("nothing to change; give mac_age_s or isolation")
        return self


class SwitchRemove(Strict):
    name: Name
    if_exists: bool = Field(default=False, description="succeed if there is none")


class SwitchName(Strict):
    name: Name


class _NewPort(PortConfig):
    owner: Owner | None = Field(
        default=None, description="the VM that the port was made for, and must not outlive; none: it stays"
    )

    def config(self) -> PortConfig:
        return PortConfig.model_validate(self.model_dump(include=set(PortConfig.model_fields)))


class PortAdd(_NewPort):
    may_exist: bool = Field(
        default=False, description="succeed if there is one with the same settings, and not of another owner"
    )


class PortCheck(_NewPort):
    """As port.add takes it."""


class PortRemove(Strict):
    name: Name
    if_exists: bool = Field(default=False, description="succeed if there is none")


class PortName(Strict):
    name: Name


class NullableName(Strict):
    switch: Name | None = Field(default=None, description="only the ports of this switch")


class StormSet(Strict):
    """Limits that are to change."""

    broadcast: PacketsPerS | None = None
    multicast: PacketsPerS | None = None
    unknown: PacketsPerS | None = None


class PortSet(Strict):
    """What may change while packets flow. Absent: as it is."""

    name: Name
    link: Link | None = None
    mtu: Mtu | None = Field(default=None, description="null: the switch's; not for passthrough and app")
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


class CaptureStart(Strict):
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


class AddPort(_NewPort):
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


class ApplyRequest(Strict):
    steps: list[ChangeStep] = Field(max_length=16384, description="done in this order")
    progress: bool = Field(
        default=False,
        description="tell of each step before it is done, by a notification progress with step and of; a"
        " client that hangs up meanwhile takes the request back",
    )


class StopRequest(Strict):
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


class PeerView(_Result):
    """pid is 0 for a process of a PID namespace that vptd does not see."""

    pid: int
    uid: int


class PortDetail(PortView):
    lossless: bool
    max_macs: int
    features: str
    peer: PeerView | None = Field(description="who is plugged in")
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
    owners: dict[str, str] = Field(description="the VMs that ports were made for, and must not outlive")


class StatsView(_Result):
    """Sums over each port's queues since it was created, and each worker's own counters."""

    time: float
    path: str
    ports: dict[str, dict[str, int]]
    workers: list[dict[str, int]]


class KeeperView(_Result):
    pid: int | None
    ports: int = Field(description="how many it holds by now; none yet while a new one takes over")


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
        what = sentence(item)
        problems.append(f"{place}: {what}" if place else what)
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
