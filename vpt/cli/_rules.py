# SPDX-License-Identifier: BSD-2-Clause
"""What a port may send and gets, as options of vpt port add and set, and as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["rule_options", "rule_params", "rules_text"]

F = TypeVar("F", bound=Callable[..., Any])

_FACTOR = {"k": 10**3, "M": 10**6, "G": 10**9}
_STORMS = ("broadcast", "multicast", "unknown")
_RATES = {
    "rate": ("bits_per_s", "BITS", "bits per second"),
    "packets": ("packets_per_s", "N", "packets per second"),
    "burst": ("burst_bytes", "BYTES", "bytes at once"),
    "burst_packets": ("burst_packets", "N", "packets at once"),
}
_WHO = {"tx": "What its peer sends", "rx": "What its peer gets"}


def _amount(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | str | None:
    """10k, 100M, 1G as a number; none, for no limit, stays a word."""
    if value is None or value == "none":
        return value
    number, factor = (value[:-1], _FACTOR[value[-1]]) if value[-1:] in _FACTOR else (value, 1)
    if not (number.isascii() and number.isdecimal() and len(number) <= 15):
        raise click.BadParameter(f"{value!r} is no number; they look like 2000, 10k, 100M, 1G, or none")
    return int(number) * factor


def rule_options(command: F) -> F:
    """The options, for a command that hands them to rule_params()."""
    options = [
        click.option(
            "--vlan", type=int, metavar="VID", help="Access port: its peer is in this VLAN, untagged."
        ),
        click.option("--trunk", metavar="LIST", help="Trunk: VLANs carried with tags, such as 10,20-30."),
        click.option("--native", type=int, metavar="VID", help="Trunk: VLAN of frames without tag."),
        click.option(
            "--isolated/--no-isolated", default=None, help="Exchange packets only with ports that are not."
        ),
        click.option(
            "--anti-spoofing/--no-anti-spoofing", default=None, help="Its peer may send from its --mac only."
        ),
    ]
    for direction, who in _WHO.items():
        for option, (_, metavar, what) in _RATES.items():
            name = f"--{option.replace('_', '-')}-{direction}"
            options.append(click.option(name, callback=_amount, metavar=metavar, help=f"{who}: {what}."))
    for kind, to in zip(_STORMS, ("everybody", "groups", "unknown addresses"), strict=True):
        default = "  [default: 10000]" if kind == "broadcast" else ""
        what = f"Packets per second that it may send to {to}; none: no limit.{default}"
        options.append(click.option(f"--{kind}-limit", callback=_amount, metavar="N", help=what))
    for decorate in reversed(options):
        command = decorate(command)
    return command


def rule_params(options: dict[str, Any]) -> dict[str, Any]:
    """Take these options out of `options`; what they mean to port.add and port.set."""
    params: dict[str, Any] = {}
    vlan = {
        "access": options.pop("vlan"),
        "trunk": _list(options.pop("trunk")),
        "native": options.pop("native"),
    }
    if given := {key: value for key, value in vlan.items() if value is not None}:
        params["vlan"] = given
    for key in ("isolated", "anti_spoofing"):
        if (value := options.pop(key)) is not None:
            params[key] = value
    for direction in _WHO:
        given = {key: options.pop(f"{option}_{direction}") for option, (key, _, _) in _RATES.items()}
        given = {key: value for key, value in given.items() if value is not None}
        if given:
            limits = {key: value for key, value in given.items() if value != "none"}
            params.setdefault("rate", {})[direction] = limits or None
    for kind in _STORMS:
        if (value := options.pop(f"{kind}_limit")) is not None:
            params.setdefault("storm", {})[kind] = 0 if value == "none" else value
    return params


def _list(text: str | None) -> list[int | str] | None:
    if text is None:
        return None
    return [int(item) if item.isdecimal() else item for item in text.replace(" ", "").split(",") if item]


def rules_text(port: dict[str, Any]) -> list[tuple[str, str]]:
    """What is not as it is by default, for people: name and value."""
    rows = []
    vlan = port["vlan"] or {}
    if vlan.get("access"):
        rows.append(("vlan", f"access {vlan['access']}"))
    elif vlan:
        native = f", native {vlan['native']}" if vlan["native"] else ""
        rows.append(("vlan", f"trunk {' '.join(map(str, vlan['trunk'])) or 'of none'}{native}"))
    if port["isolated"]:
        rows.append(("isolated", "yes"))
    if port["anti_spoofing"]:
        rows.append(("anti-spoofing", "yes"))
    for direction in _WHO:
        if rate := port["rate"][direction]:
            words = [f"{rate[key]} {what}" for key, _, what in _RATES.values() if rate[key]]
            rows.append((f"rate {direction}", ", ".join(words)))
    storm = [f"{kind} {port['storm'][kind]}" for kind in _STORMS if port["storm"][kind]]
    rows.append(("storm limits", f"{', '.join(storm)} per second" if storm else "none"))
    return rows
