# SPDX-License-Identifier: BSD-2-Clause
"""Tiny Linux guests: building their image, booting them, running commands and measuring flows in them."""

from vpt.guest._flows import Ping, Tcp, Udp, ping, tcp_file, udp_stream
from vpt.guest._guest import Finished, Guest, Job
from vpt.guest._image import READY_MARK, Image, build_image, cache_dir, find_busybox
from vpt.guest._kernel import Kernel, find_kernel

__all__ = [
    "READY_MARK",
    "Finished",
    "Guest",
    "Image",
    "Job",
    "Kernel",
    "Ping",
    "Tcp",
    "Udp",
    "build_image",
    "cache_dir",
    "find_busybox",
    "find_kernel",
    "ping",
    "tcp_file",
    "udp_stream",
]
