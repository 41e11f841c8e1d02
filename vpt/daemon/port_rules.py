# SPDX-License-Identifier: BSD-2-Clause
"""What a port may send and gets, as models: VLANs, rates, storm limits."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

__all__ = ["PacketsPerS", "RateConfig", "RatesConfig", "StormConfig", "Strict", "Vid", "VlanConfig", "vids"]

_MAX_VID = 4094
_RANGE = re.compile(r"([1-9][0-9]{0,3})-([1-9][0-9]{0,3})", re.ASCII)
_AMOUNT = re.compile(r"([0-9]{1,15})([kMG]?)", re.ASCII)
_FACTOR = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_BROADCAST_PER_S = 10_000


class Strict(BaseModel):
    """Nothing is guessed: no unknown keys, no numbers in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _amount(value: object) -> object:
    """100M as 100000000; what is no such word is left for the next validator."""
    found = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    return int(found[1]) * _FACTOR[found[2]] if found else value


def _limited(least: int, most: int, what: str) -> Any:
    """A number, which may be written with k, M or G."""
    schema = {
        "anyOf": [
            {"type": "integer", "minimum": least, "maximum": most},
            {"type": "string", "pattern": "^[0-9]{1,15}[kMG]?$"},
        ],
        "description": f"{what}, also as 10k, 100M, 1G",
    }
    return Annotated[int, BeforeValidator(_amount), Field(ge=least, le=most), WithJsonSchema(schema)]


Vid = Annotated[int, Field(ge=1, le=_MAX_VID)]


def _ends(item: int | str) -> tuple[int, int]:
    if isinstance(item, int):
        first = last = item
    elif found := _RANGE.fullmatch(item):
        first, last = int(found[1]), int(found[2])
    else:
        raise ValueError(f"{item!r} is no VLAN and no range of them; they look like 10 and 20-30")
    if not 1 <= first <= last <= _MAX_VID:
        raise ValueError(f"{item!r}: VLANs are 1 to {_MAX_VID}, a range begins with the lower one")
    return first, last


def _canonical(items: list[int | str]) -> list[int | str]:
    """In order, without overlaps, so that two ways to write the same are equal."""
    merged: list[list[int]] = []
    for first, last in sorted(map(_ends, items)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return [first if first == last else f"{first}-{last}" for first, last in merged]


def vids(items: list[int | str]) -> frozenset[int]:
    """The VLANs that a trunk's list names."""
    return frozenset(vid for item in items for vid in range(_ends(item)[0], _ends(item)[1] + 1))


def _item(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no VLAN and no range of them; they look like 10 and 20-30")
    return value


Trunk = Annotated[
    list[Annotated[int | str, BeforeValidator(_item)]], AfterValidator(_canonical), Field(max_length=_MAX_VID)
]


class VlanConfig(Strict):
    """VLANs of a port (IEEE 802.1Q). None at all: it carries each, with its tag."""

    access: Vid | None = Field(default=None, description="the one VLAN of a peer that knows nothing of VLANs")
    trunk: Trunk | None = Field(default=None, description="VLANs carried with tags, such as 10 and 20-30")
    native: Vid | None = Field(
        default=None, description="trunk: VLAN of frames without tag; none: they are dropped"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> VlanConfig:
        if (self.access is None) == (self.trunk is None):
            raise ValueError("give either access or trunk")
        if self.native is not None and self.trunk is None:
            raise ValueError("native is for trunks")
        return self


class RateConfig(Strict):
    """A limit in one direction: token buckets. Beyond it packets are dropped; lossless senders wait."""

    bits_per_s: _limited(8000, 10**12, "bits of frames per second") | None = None  # type: ignore[valid-type]
    packets_per_s: _limited(1, 10**9, "packets per second") | None = None  # type: ignore[valid-type]
    burst_bytes: _limited(1, 1 << 30, "bytes at once; none: 10 ms, 128 KiB at least") | None = None  # type: ignore[valid-type]
    burst_packets: _limited(1, 1 << 20, "packets at once; none: 10 ms, 64 at least") | None = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _something(self) -> RateConfig:
        if self.bits_per_s is None and self.packets_per_s is None:
            raise ValueError("give bits_per_s or packets_per_s")
        for burst, rate in (("burst_bytes", "bits_per_s"), ("burst_packets", "packets_per_s")):
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise ValueError(f"{burst} needs {rate}")
        return self


class RatesConfig(Strict):
    """tx: what the peer sends; rx: what it gets."""

    tx: RateConfig | None = None
    rx: RateConfig | None = None


PacketsPerS = _limited(0, 10**9, "packets per second; 0: no limit")


class StormConfig(Strict):
    """What the peer may send to many."""

    broadcast: PacketsPerS = _BROADCAST_PER_S  # type: ignore[valid-type]
    multicast: PacketsPerS = 0  # type: ignore[valid-type]
    unknown: PacketsPerS = 0  # type: ignore[valid-type]
