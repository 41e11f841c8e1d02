# SPDX-License-Identifier: BSD-2-Clause
"""Which command is where. A new command group is a file and a row here."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMMANDS", "Row"]


class Row(NamedTuple):
    """section: heading in `vpt --help`; target: module:attribute; help: the command's own first sentence."""

    section: str
    name: str
    target: str
    help: str


COMMANDS = (
    Row("Set up", "demo", "vpt.cli.demo:demo", "Run two real VMs over vpt and show what it took."),
    Row(
        "Set up",
        "doctor",
        "vpt.cli.doctor:doctor",
        "Say what this host can do, and what to do about the rest.",
    ),
    Row(
        "Set up",
        "daemon",
        "vpt.cli.daemon:daemon",
        "Start, stop and look at vptd, the daemon behind everything.",
    ),
    Row("Set up", "switch", "vpt.cli.switch:switch", "Make, change and delete switches."),
    Row("Set up", "port", "vpt.cli.port:port", "Plug things into a switch, and unplug them."),
    Row(
        "Set up",
        "apply",
        "vpt.cli.topology:apply",
        "Make switches, ports and virtual machines as the topology in FILE says.",
    ),
    Row("Set up", "diff", "vpt.cli.topology:diff", "Print what vpt apply FILE would do."),
    Row(
        "Set up",
        "export",
        "vpt.cli.topology:export",
        "Print the switches, ports and machines that there are as a topology.",
    ),
    Row(
        "Set up",
        "attach",
        "vpt.cli.attach:attach",
        "Plug VM into a switch: make a port, and the device for it.",
    ),
    Row(
        "Set up",
        "detach",
        "vpt.cli.attach:detach",
        "Unplug VM: take out the device of PORT, wait until the guest has let go of it, and delete the port.",
    ),
    Row(
        "Set up",
        "libvirt",
        "vpt.cli.libvirt:libvirt",
        "Change a domain's XML by hand, and let libvirt bring ports up by itself.",
    ),
    Row("Set up", "guest", "vpt.cli.guest:guest", "Make virtual machines, and work in them."),
    Row("Look", "ls", "vpt.cli.look:ls", "List all switches and ports."),
    Row("Look", "show", "vpt.cli.look:show", "Show all there is to know about a switch or a port."),
    Row(
        "Look",
        "stats",
        "vpt.cli.stats:stats",
        "Print all counters of ports and workers, or serve them to Prometheus.",
    ),
    Row("Look", "top", "vpt.cli.top:top", "Show packet rates and notifications per packet, live."),
    Row(
        "Look",
        "capture",
        "vpt.cli.capture:capture",
        "Write the packets of a port, or of a switch's ports, as pcapng.",
    ),
    Row("Measure", "gen", "vpt.cli.gen:gen", "Generate and receive packets on a switch."),
    Row("Measure", "exits", "vpt.cli.exits:exits", "Count VM exits: per second, and per packet."),
    Row(
        "Measure",
        "bench",
        "vpt.cli.bench:bench",
        "Measure, compare what was measured, and say what to expect.",
    ),
    Row(
        "Measure",
        "conform",
        "vpt.cli.conform:conform",
        "Test a vhost-user net back-end: any, by its socket.",
    ),
)
