# SPDX-License-Identifier: BSD-2-Clause
"""Groups that may use what this user may not: by the file that was refused, not by what is usual."""

from __future__ import annotations

import grp
import os
import pwd

__all__ = ["joining", "user_name"]


def joining(refused: os.stat_result, may: int) -> str | None:
    """What has this user be one of the file's group. None: no help, or not wanted. may: bits it must have."""
    # To be in root's group would allow more than that.
    if refused.st_gid == 0 or refused.st_mode & may != may:
        return None
    user, (group, members) = user_name(), _group(refused.st_gid)
    if user in members:
        return f"log in again: {user} is in the group {group} by now"
    return f"sudo adduser {user} {group}; log in again"


def user_name() -> str:
    """Of this process; its number where nobody has named it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _group(gid: int) -> tuple[str, list[str]]:
    """Its name and who is in it; its number where nobody has named it."""
    try:
        found = grp.getgrgid(gid)
    except KeyError:
        return str(gid), []
    return found.gr_name, found.gr_mem
