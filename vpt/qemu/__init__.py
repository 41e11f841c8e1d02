# SPDX-License-Identifier: BSD-2-Clause
"""QEMU: finding it, its command line, and whether KVM can be used on this host."""

from vpt.qemu._accel import Accel, probe_accel
from vpt.qemu._binary import Qemu, find_qemu
from vpt.qemu._cmdline import (
    RECONNECT_MS,
    Drive,
    Ivshmem,
    Machine,
    Nic,
    UserNet,
    VhostUser,
    command_line,
    kernel_arguments,
    option_value,
    user_net,
)
from vpt.qemu._console import console_text
from vpt.qemu._kvm import KvmFault, kvm_fault
from vpt.qemu._names import names_a_socket, split_name
from vpt.qemu._process import domain_pid

__all__ = [
    "RECONNECT_MS",
    "Accel",
    "Drive",
    "Ivshmem",
    "KvmFault",
    "Machine",
    "Nic",
    "Qemu",
    "UserNet",
    "VhostUser",
    "command_line",
    "console_text",
    "domain_pid",
    "find_qemu",
    "kernel_arguments",
    "kvm_fault",
    "names_a_socket",
    "option_value",
    "probe_accel",
    "split_name",
    "user_net",
]
