# SPDX-License-Identifier: BSD-2-Clause
"""vpt demo"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import click

from vpt.cli._common import emit_json, json_option, print_table, progress, stoppable

if TYPE_CHECKING:
    from vpt.demo import FlowReport, PortReport, Report

__all__ = ["demo"]


@click.command()
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True,
              help="How the guests run; auto finds out by booting one.")  # fmt: skip
@click.option("--mib", type=click.IntRange(1, 64), default=32, show_default=True,
              help="Size of the file sent over TCP in each direction.")  # fmt: skip
@click.option("--pings", type=click.IntRange(1, 10_000), default=200, show_default=True,
              help="Echo requests in each direction.")  # fmt: skip
@click.option("--udp-packets", type=click.IntRange(1, 1_000_000), default=20_000, show_default=True,
              help="Packets of the UDP stream in each direction.")  # fmt: skip
@click.option("--udp-pps", type=click.IntRange(0, 1_000_000), default=5_000, show_default=True,
              help="Their rate; 0: as fast as the guest can.")  # fmt: skip
@json_option
def demo(
    accel: Literal["auto", "kvm", "tcg"], mib: int, pings: int, udp_packets: int, udp_pps: int, as_json: bool
) -> None:
    """Run two real VMs over vpt and show what it took.

    Builds a tiny guest from this host's kernel (cached), boots one on a vhost-user port with its stock
    virtio-net driver and one on a passthrough port with vpt_net, sends pings, files and UDP streams
    between them, and prints losses, throughput, round trips, and kicks, interrupts and copies per packet.

    Needs no running vptd and no privileges; leaves nothing behind but the cached image.

    \b
    Examples:
      vpt demo
      vpt demo --json | jq '.flows[] | {from, to, what, lost}'
      vpt demo --accel tcg --mib 8
    """
    from vpt.demo import Options, run

    options = Options(None if accel == "auto" else accel, pings, mib, udp_packets, udp_pps=udp_pps)
    with stoppable():
        report = run(options, progress())
    if as_json:
        emit_json("demo", report.as_json())
    else:
        _print(report)
    if not report.ok:
        sys.exit(1)


def _print(report: Report) -> None:
    click.echo(
        f"accelerator {report.accel} ({report.accel_why}), QEMU {report.qemu}, Linux {report.kernel}\n"
    )
    print_table(
        ["FLOW", "WHAT", ">SENT", ">RECEIVED", ">LOST", ">Mbit/s", ">RTT MEDIAN", ">RTT P99", ">KICKS/PKT",
         ">INTR/PKT", "SHA-256"],
        [_flow_row(flow) for flow in report.flows],
    )  # fmt: skip
    click.echo()
    print_table(
        ["PORT", "KIND", "DRIVER", ">RX", ">TX", ">KICKS", ">SUPPR.", ">/PKT", ">INTR", ">SUPPR.", ">/PKT",
         ">COPIES/PKT", ">DROPS"],
        [_port_row(port) for port in report.ports],
    )  # fmt: skip


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} us"


def _flow_row(flow: FlowReport) -> list[str]:
    sha = {None: "-", True: "same", False: "DIFFERS"}[flow.sha256_ok]
    rate = "-" if flow.what == "ping" else f"{flow.mbit_s:.1f}"
    return [
        f"{flow.source} -> {flow.target}", flow.what, str(flow.sent), str(flow.received), str(flow.lost),
        rate, _us(flow.rtt_us_median), _us(flow.rtt_us_p99), f"{flow.kicks_per_packet:.3f}",
        f"{flow.interrupts_per_packet:.3f}", sha,
    ]  # fmt: skip


def _port_row(port: PortReport) -> list[str]:
    return [
        port.name, port.kind, port.driver, str(port.rx_packets), str(port.tx_packets), str(port.kicks),
        str(port.kicks_suppressed), f"{port.kicks_per_packet:.3f}", str(port.interrupts),
        str(port.interrupts_suppressed), f"{port.interrupts_per_packet:.3f}", f"{port.copies_per_packet:.2f}",
        str(port.drops),
    ]  # fmt: skip
