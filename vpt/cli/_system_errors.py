# SPDX-License-Identifier: BSD-2-Clause
"""What the system refuses and no command has foreseen: a disk that is full, a folder that is not to be read.

Only what the state of the host can be the reason of. All else (a bad descriptor, say) is a fault of
vpt's own, which must show where it is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vpt.errors import VptError

__all__ = ["in_words", "writing"]

_HINTS = {
    errno.ENOSPC: "the disk is full: df -h {folder}",
    errno.EDQUOT: "this user's share of the disk is used up: quota",
    errno.EFBIG: "files may not get that large here: ulimit -f",
    errno.EROFS: "it can't be written to: findmnt -T {folder}",
    errno.EIO: "the disk may be failing: dmesg | tail",
    errno.EACCES: "see who may: ls -ld {folder} {file}",
    errno.EPERM: "see who may: ls -ld {folder} {file}",
    errno.ENOENT: "see what there is: ls {folder}",
    errno.ENOTDIR: "see what there is: ls -ld {folder}",
    errno.EISDIR: "name a file in it",
    errno.ELOOP: "follow the links: namei {file}",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "too many files are open: ulimit -n",
    errno.ENFILE: "too many files are open on this host: sysctl fs.file-nr",
    errno.ENOMEM: "see what is free: free -m",
}
# Of these, one without a file's name is of our own output.
_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system says of a write that fails does not name the file: it is this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def in_words(error: OSError) -> VptError | None:
    """What to tell the user. None: it is not the host's fault."""
    number = error.errno or 0
    hint = _HINTS.get(number)
    if hint is None:
        return None
    file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    if file is None and number in _OF_OUTPUT:
        # A buffer of it is left, that nobody must try to write again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        file = "its output"
    folder = os.path.dirname(error.filename or "") or "."
    what = f"{file}: " if file else ""
    return VptError(f"{what}{os.strerror(number)}", hint=hint.format(file=file or "", folder=folder).strip())
