# SPDX-License-Identifier: BSD-2-Clause
"""A VMM of one page: runs 16-bit code that writes a port, and holds a stats descriptor as QEMU 8.1 does.

Each line on stdin is how many port writes to make; each is answered by how many exits to user space came.
Run as a program by test_exits_stats_fd.py; not a test itself.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_RUN = 0xAE80
KVM_GET_STATS_FD = 0xAECE
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_REGS, KVM_SREGS_SIZE, KVM_REGS_SIZE = 0x4090AE82, 312, 144
KVM_GET_SREGS, KVM_SET_SREGS = 0x8138AE83, 0x4138AE84
KVM_EXIT_IO, KVM_EXIT_HLT = 2, 5

MEMORY, ENTRY = 0x10000, 0x1000
# 1: out 0x80, al; loop 1b; hlt
CODE = bytes.fromhex("e680 e2fc f4")


def main() -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, MEMORY)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    memory[ENTRY : ENTRY + len(CODE)] = CODE
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, MEMORY, address))
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
    fcntl.ioctl(vcpu, KVM_GET_STATS_FD, 0)

    sregs = bytearray(KVM_SREGS_SIZE)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    struct.pack_into("=Q", sregs, 0, 0)  # cs.base
    struct.pack_into("=H", sregs, 12, 0)  # cs.selector
    fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))

    print("ready", flush=True)
    for line in sys.stdin:
        regs = bytearray(KVM_REGS_SIZE)
        struct.pack_into("=Q", regs, 16, int(line))  # rcx
        struct.pack_into("=QQ", regs, 128, ENTRY, 2)  # rip, rflags
        fcntl.ioctl(vcpu, KVM_SET_REGS, bytes(regs))
        print(_run(vcpu, run), flush=True)


def _run(vcpu: int, run: mmap.mmap) -> int:
    exits = 0
    while True:
        fcntl.ioctl(vcpu, KVM_RUN, 0)
        reason = struct.unpack_from("=I", run, 8)[0]
        if reason == KVM_EXIT_HLT:
            return exits
        if reason != KVM_EXIT_IO:
            raise SystemExit(f"unexpected exit reason {reason}")
        exits += 1


main()
