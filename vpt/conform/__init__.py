# SPDX-License-Identifier: BSD-2-Clause
"""A vhost-user net front-end with every step in reach: to test back-ends with, and to misbehave with.

front_end.py    a connection: messages, handshake, starting rings, frames in and out
guest_memory.py memfds at guest-physical addresses
split_queue.py  the driver's side of a split virtqueue; packed_queue.py: of a packed one
frames.py       Ethernet frames that carry a number

It blocks, with time-outs: for tests and tools, not for the event loop of vptd.
"""
