# SPDX-License-Identifier: BSD-2-Clause
"""One command at a time changes virtual machines for a vptd.

libvirt takes a whole domain, and the last one who gives it one wins; and a port gets the first name
that is not taken.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vpt.errors import TimeoutExpired

__all__ = ["in_turn"]

_TURN_S = 60.0
_LOOK_S = 0.05


@contextmanager
def in_turn(runtime_dir: str) -> Iterator[None]:
    """Wait until nobody else is in here for that vptd. TimeoutExpired: for a minute somebody was.

    The folder itself is locked, which whoever may read it can do. Where there is none, there is no vptd
    either. A command that is killed ends its turn.
    """
    try:
        folder = os.open(runtime_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        _lock(folder)
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    end = time.monotonic() + _TURN_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutExpired(
                    f"waited {_TURN_S:g} s for another vpt attach or detach to end",
                    hint="pgrep -af 'vpt (attach|detach)'",
                ) from None
            time.sleep(_LOOK_S)
