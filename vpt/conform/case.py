# SPDX-License-Identifier: BSD-2-Clause
"""A case: one rule, and an act that shows whether a back-end keeps it. And the list of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpt.vhost_user import ProtocolFeature, VirtioFeature, feature_names

if TYPE_CHECKING:
    from vpt.conform.stage import Stage

__all__ = ["GROUPS", "Act", "Case", "Cases", "Skip", "select"]

Act = Callable[["Stage"], object]

#: Files of vpt/conform/cases, in the order in which they run.
GROUPS = (
    "protocol",
    "device",
    "features",
    "socket",
    "requests",
    "memory",
    "rings",
    "split",
    "packed",
    "packet",
    "migration",
    "life",
)


class Skip(Exception):  # noqa: N818 - no error
    """What the case needs is not there; the message says what."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    id: a line of the hostile-input checklist (S1 to L10), or V and a number for what the protocol promises,
    and words that tell it from others. rule: what it holds the back-end to. source: where that is written.
    act: raises Failure, Skip, or nothing. virtio, protocol: feature bits without which there is nothing to
    check. peer: needs a second port, through which frames come back.
    """

    id: str
    group: str
    rule: str
    source: str
    act: Act
    virtio: int = 0
    protocol: int = 0
    peer: bool = False

    def lacks(self, offered: int, protocol: int, *, peer: bool) -> str:
        """Why it has to be skipped with a back-end that offers these; empty if it has not."""
        missing = feature_names(self.virtio & ~offered, VirtioFeature)
        missing += feature_names(self.protocol & ~protocol, ProtocolFeature)
        if missing:
            return f"not offered: {', '.join(missing)}"
        return "needs a second port: --peer" if self.peer and not peer else ""

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        needs = feature_names(self.virtio, VirtioFeature) + feature_names(self.protocol, ProtocolFeature)
        return {
            "id": self.id,
            "group": self.group,
            "rule": self.rule,
            "source": self.source,
            "needs": needs,
            "peer": self.peer,
        }


class Cases:
    """The cases of one group. source: where their rules are written, for those that do not say."""

    def __init__(self, group: str, source: str) -> None:
        self.group = group
        self.source = source
        self.all: list[Case] = []

    def add(
        self,
        case_id: str,
        rule: str,
        act: Act,
        *,
        source: str = "",
        virtio: int = 0,
        protocol: int = 0,
        peer: bool = False,
    ) -> None:
        """Register a case."""
        case = Case(case_id, self.group, rule, source or self.source, act, int(virtio), int(protocol), peer)
        self.all.append(case)

    def case(
        self,
        case_id: str,
        rule: str,
        *,
        source: str = "",
        virtio: int = 0,
        protocol: int = 0,
        peer: bool = False,
    ) -> Callable[[Act], Act]:
        """The same as a decorator of the act."""

        def register(act: Act) -> Act:
            self.add(case_id, rule, act, source=source, virtio=virtio, protocol=protocol, peer=peer)
            return act

        return register


def select(cases: Iterable[Case], wanted: Iterable[str]) -> list[Case]:
    """Those that are named: by id, by how ids begin (S21), or by group. ValueError: names none."""
    cases = list(cases)
    names = list(wanted)
    if not names:
        return cases
    chosen: set[str] = set()
    for name in names:
        exactly = [case.id for case in cases if case.id == name]
        alike = [case.id for case in cases if case.group == name or case.id.startswith(f"{name}-")]
        if not (exactly or alike):
            raise ValueError(name)
        chosen.update(exactly or alike)
    return [case for case in cases if case.id in chosen]
