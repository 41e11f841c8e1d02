# SPDX-License-Identifier: BSD-2-Clause
"""What Python owns of C's: opened once, closed once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from vpt.closing import Closing
from vpt.errors import ConflictError


class Owned(Closing):
    """An object of C's that close() frees; used after that, it raises ConflictError. A context manager.

    A subclass names it (_WHAT), says what frees it (_FREE), and calls _own() once it is open.
    """

    _WHAT: ClassVar[str]
    _FREE: ClassVar[Callable[[Any], object]]
    _h: Any = None

    def _own(self, handle: Any) -> None:
        self._h = handle

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    @property
    def closed(self) -> bool:
        return self._h is None

    def _handle(self) -> Any:
        if self._h is None:
            raise ConflictError(f"this {self._WHAT} is closed")
        return self._h

    def close(self) -> None:
        """Free it. Harmless the second time."""
        if self._h is not None:
            handle, self._h = self._h, None
            type(self)._FREE(handle)
