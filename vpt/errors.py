# SPDX-License-Identifier: BSD-2-Clause
"""The one tree of exceptions.

    VptError                     code           exit
     ├── UsageError              usage             2   the request itself is wrong: bad value, unknown option
     │    └── TopologyError      topology          2   a topology file is wrong, or contradicts itself
     ├── MissingError            missing           3   this host lacks something (package, device, permission)
     ├── NotFoundError           not-found         1   no such switch, port, VM
     ├── ExistsError             exists            1   that name is taken
     ├── ConflictError           conflict          1   not possible in the present state
     ├── DaemonError             daemon            1   vptd can't be reached, or broke off
     ├── ProtocolError           protocol          1   a peer broke the rules of a wire protocol
     ├── DataplaneError          dataplane         1   a data-plane call failed; carries errno
     ├── GuestError              guest             1   a virtual machine did not do what it should
     └── TimeoutExpired          timeout           1   something awaited did not happen

Each carries a sentence that says what is wrong and, where a user can do something about it, a hint that says
what: preferably the next command to type. `code` is stable, for machines; `exit_code` is what the command
line ends with (0 done, 1 failed, 2 wrong usage, 3 a needed thing is missing on this host). A command that
compares ends with 4 where it found a difference, which is no error. A name that is not in a table of
vpt's own (a scenario, a case) is wrong usage; one of what is made and removed is not found.
"""

from __future__ import annotations

import os
from typing import ClassVar

__all__ = [
    "EXIT_DIFFERENT",
    "EXIT_FAILED",
    "EXIT_MISSING",
    "EXIT_OK",
    "EXIT_USAGE",
    "ConflictError",
    "DaemonError",
    "DataplaneError",
    "ExistsError",
    "GuestError",
    "MissingError",
    "NotFoundError",
    "ProtocolError",
    "TimeoutExpired",
    "TopologyError",
    "UsageError",
    "VptError",
    "from_wire",
]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_DIFFERENT = 4


class VptError(Exception):
    """Root of the tree. `code` defaults to the class's own."""

    default_code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code

    def __str__(self) -> str:
        return self.message

    def to_wire(self) -> dict[str, str]:
        """The form in which it crosses the control socket."""
        wire = {"code": self.code, "message": self.message}
        if self.hint:
            wire["hint"] = self.hint
        return wire


class UsageError(VptError):
    """The request itself is wrong."""

    default_code = "usage"
    exit_code = EXIT_USAGE


class TopologyError(UsageError):
    """A topology file is wrong, or contradicts itself."""

    default_code = "topology"


class MissingError(VptError):
    """This host lacks something; the hint is the command that provides it."""

    default_code = "missing"
    exit_code = EXIT_MISSING


class NotFoundError(VptError):
    """No such switch, port or VM."""

    default_code = "not-found"


class ExistsError(VptError):
    """That name is taken."""

    default_code = "exists"


class ConflictError(VptError):
    """Not possible in the present state."""

    default_code = "conflict"


class DaemonError(VptError):
    """vptd can't be reached, or broke off."""

    default_code = "daemon"


class ProtocolError(VptError):
    """A peer broke the rules of a wire protocol."""

    default_code = "protocol"


class DataplaneError(VptError):
    """A data-plane call failed. `errno` is positive, `what` names the operation and its object."""

    default_code = "dataplane"

    def __init__(self, errno: int, what: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{what}: {os.strerror(errno)}", hint=hint, code=code)
        self.errno = errno
        self.what = what


class GuestError(VptError):
    """A virtual machine did not do what it should."""

    default_code = "guest"


class TimeoutExpired(VptError):  # noqa: N818 - named after subprocess's
    """Something awaited did not happen; the message says what was awaited and how long."""

    default_code = "timeout"


def from_wire(wire: dict[str, str]) -> VptError:
    """The exception that an error object of the control socket stands for.

    An unknown code (a newer daemon's) gives a plain VptError that keeps it.
    """
    code = wire.get("code", VptError.default_code)
    message = wire.get("message", "unknown error")
    cls = _BY_CODE.get(code, VptError)
    if issubclass(cls, DataplaneError):
        # Its errno is the daemon's business; message and hint are what a person needs.
        cls = VptError
    return cls(message, hint=wire.get("hint"), code=code)


def _subclasses(cls: type[VptError]) -> list[type[VptError]]:
    return [cls, *(deeper for sub in cls.__subclasses__() for deeper in _subclasses(sub))]


_BY_CODE = {cls.default_code: cls for cls in _subclasses(VptError)}
