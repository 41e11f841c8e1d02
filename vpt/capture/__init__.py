# SPDX-License-Identifier: BSD-2-Clause
"""Packets of ports as pcapng: filters, the file format, and the observer's end of a capture in vptd.

with Client(locate().control) as vptd, Observer(vptd, "sw0", filter_=compile_filter("arp")) as observer:
    for block in observer.blocks(stopped=lambda: False):
        out.write(block)
"""

from vpt.capture._filter import compile_filter
from vpt.capture._observer import Observer

__all__ = ["Observer", "compile_filter"]
