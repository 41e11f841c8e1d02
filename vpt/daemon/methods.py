# SPDX-License-Identifier: BSD-2-Clause
"""The control socket's methods, as a table. `vpt daemon methods` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpt.daemon import models
from vpt.daemon.rpc import Method

if TYPE_CHECKING:
    from vpt.daemon.daemon import Daemon

__all__ = ["method_table"]


def method_table(d: Daemon) -> dict[str, Method]:
    """Name -> method, bound to a daemon."""
    m = models
    rows = (
        Method("daemon.status", m.Empty, m.Status, "Version, process, folders, how many of what.", d.status),
        Method("daemon.methods", m.Empty, m.MethodList, "This table, with JSON schemas.", d.methods),
        Method(
            "daemon.stop", m.StopRequest, m.Acknowledged, "End cleanly, after this answer.", d.request_stop
        ),
        Method("switch.add", m.SwitchAdd, m.Acknowledged, "Make a learning switch.", d.switches.add),
        Method(
            "switch.del", m.SwitchRemove, m.Acknowledged, "Delete a switch without ports.", d.switches.remove
        ),
        Method(
            "switch.set",
            m.SwitchSet,
            m.SwitchView,
            "Change ageing or isolation of a switch while packets flow.",
            d.switches.change,
        ),
        Method("switch.list", m.Empty, m.SwitchList, "All switches.", d.switches.list_all),
        Method(
            "switch.macs", m.SwitchName, m.MacList, "Addresses that a switch has learned.", d.switches.macs
        ),
        Method(
            "port.add", m.PortAdd, m.PortView, "Add a port to a switch; its socket exists then.", d.ports.add
        ),
        Method(
            "port.check",
            m.PortCheck,
            m.Acknowledged,
            "Refuse what port.add would refuse, as far as that shows beforehand; change nothing.",
            d.ports.check,
        ),
        Method("port.del", m.PortRemove, m.Acknowledged, "Delete a port and its socket.", d.ports.remove),
        Method("port.set", m.PortSet, m.PortView, "Change a port while packets flow.", d.ports.change),
        Method(
            "port.list", m.NullableName, m.PortList, "All ports, or those of one switch.", d.ports.list_all
        ),
        Method("port.show", m.PortName, m.PortDetail, "One port with transport and counters.", d.ports.show),
        Method(
            "capture.start",
            m.CaptureStart,
            m.CaptureView,
            "Copy packets of a port or switch, for an observer.",
            d.captures.start,
        ),
        Method(
            "capture.list", m.Empty, m.CaptureList, "What is being captured, for whom.", d.captures.list_all
        ),
        Method("apply", m.ApplyRequest, m.Acknowledged, "Many changes, all or none.", d.changes.apply),
        Method("list", m.Empty, m.EverythingView, "All switches and all ports.", d.list_all),
        Method("config", m.Empty, m.Configuration, "What all switches and ports were asked to be.", d.config),
        Method("stats", m.Empty, m.StatsView, "Counters per port and worker, as in the stats file.", d.stats),
    )
    return {row.name: row for row in rows}
