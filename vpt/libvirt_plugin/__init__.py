# SPDX-License-Identifier: BSD-2-Clause
"""vpt ports for the domains of libvirt, and for a QEMU without libvirt.

xml       pure functions on a domain's XML
metadata  what that says of the ports that the domain has
rules     what must hold and libvirt does not check
attach    a port and its device, made together or not at all
qmp       the same on a plain QEMU
hook      ports that come up before a domain starts
watch     no port that outlives its domain, or stays unconnected
"""
