# SPDX-License-Identifier: BSD-2-Clause
"""Ports as text."""

from __future__ import annotations

from typing import Any

from vpt.cli._common import print_table, state_style

__all__ = ["plug_lines", "policy_text", "print_ports"]


def print_ports(ports: list[dict[str, Any]]) -> None:
    """A table, one line per port."""
    print_table(
        ["PORT", "SWITCH", "KIND", "STATE", "LINK", ">PAIRS", "MAC", "POLICY", "DRIVER"],
        [
            (
                port["name"],
                port["switch"],
                port["kind"],
                state_style(port["state"]),
                port["link"],
                str(port["pairs"]),
                port["mac"] or "-",
                policy_text(port["policy"]),
                port["driver"] or port["reason"] or "-",
            )
            for port in ports
        ],
    )


def policy_text(policy: dict[str, Any]) -> str:
    """The policy with the one time that counts."""
    time = {"adaptive": policy["spin_us"], "sleep": policy["sleep_us"]}.get(policy["kind"])
    return policy["kind"] if time is None else f"{policy['kind']} {time} us"


def plug_lines(port: dict[str, Any]) -> list[str]:
    """How to connect to the port: for QEMU, the options."""
    name, socket, pairs = port["name"], port["socket"], port["pairs"]
    if port["kind"] == "passthrough":
        return [
            "QEMU:  -machine q35 -smp 1,maxcpus=2",
            f"       -chardev socket,id={name},path={socket}",
            f"       -device ivshmem-doorbell,vectors={2 * pairs + 1},chardev={name}",
        ]
    if port["kind"] == "vhost-user":
        queues = f",queues={pairs}" if pairs > 1 else ""
        many = f",mq=on,vectors={2 * pairs + 2}" if pairs > 1 else ""
        mac = f",mac={port['mac']}" if port["mac"] else ""
        return [
            "QEMU:  -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine q35,memory-backend=mem",
            f"       -chardev socket,id={name},path={socket},reconnect=1",
            f"       -netdev vhost-user,id={name}-net,chardev={name}{queues}",
            f"       -device virtio-net-pci,netdev={name}-net{mac}{many}",
        ]
    if port["kind"] == "app":
        return [f"Python: vpt.daemon.transports.unix.open_app({socket!r})"]
    return []
