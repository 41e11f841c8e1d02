# SPDX-License-Identifier: BSD-2-Clause
"""The micro guest from the host's side: build it, boot it, give it orders, read what it measured.

    machine = Machine(accel=choose_accel().name, nic=vpt.qemu.Ivshmem(socket, vectors=3))
    with MicroGuest(machine) as guest:
        guest.open()
        report = guest.run(Order(role=Role.GEN, packets=1_000_000, seconds=10))
        print(report.mpps, report.kicks_per_packet)

Orders and results travel through the guest's RAM, a memfd that this process maps too. So an order or a look
at a running guest's counters costs the guest no exit, and nothing differs between machine types, accelerators
and devices.

Units are the caller's: seconds, packets per second, bytes. The guest counts in TSC cycles; its frequency is
found when it starts.
"""

from vpt.bench.micro._desk import MAX_BURST, MIN_FRAME, Device, Flow, Kick, Role, Touch, Wait
from vpt.bench.micro._guest import MicroGuest, choose_accel
from vpt.bench.micro._machine import Machine, qemu_command
from vpt.bench.micro._orders import Counters, Found, Latency, Order, Report
from vpt.bench.micro._payload import payload

__all__ = [
    "MAX_BURST",
    "MIN_FRAME",
    "Counters",
    "Device",
    "Flow",
    "Found",
    "Kick",
    "Latency",
    "Machine",
    "MicroGuest",
    "Order",
    "Report",
    "Role",
    "Touch",
    "Wait",
    "choose_accel",
    "payload",
    "qemu_command",
]
