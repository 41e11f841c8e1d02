# SPDX-License-Identifier: BSD-2-Clause
"""What a producer and a consumer cost, and how the one that waits does it.

The two are whatever stands at the ends of a queue: a guest's driver and the switch, the switch and a guest,
two threads. All times are nanoseconds. The names are those of the model (`vpt.bench.model`), in lower case.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vpt.errors import UsageError

__all__ = ["PUBLISHED", "SPIN_LONGEST", "Costs", "Kind", "Policy"]

#: 2 to the power of it: idle periods that go by without a spin where spins are in vain, at most (spin.h).
SPIN_LONGEST = 6


class Kind(StrEnum):
    """How a side waits. The words of the CLI and of `enum vpt_policy_kind`."""

    NOTIFY = "notify"
    SLEEP = "sleep"
    POLL = "poll"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class Costs:
    """Times of one producer, one consumer and what lies between them.

    wp, wc: work per item. np, nc: what notifying the other side takes from the notifier (a kick of the
    producer, an interrupt of the consumer). sp, sc: from the end of a notification until the notified side
    works. length: items the queue holds. kc: items the consumer takes before it wakes a waiting producer
    (None: three quarters of the queue, virtio's delayed callback). slack: what each sleep lasts longer than
    asked for. block_cpu: CPU time that one trip to sleep and back costs the sleeper.
    """

    wp: float
    wc: float
    np: float = 0.0
    nc: float = 0.0
    sp: float = 0.0
    sc: float = 0.0
    length: int = 512
    kc: int | None = None
    slack: float = 0.0
    block_cpu: float = 0.0

    def __post_init__(self) -> None:
        for name in ("wp", "wc", "np", "nc", "sp", "sc", "slack", "block_cpu"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"cost {name} is {getattr(self, name)}: it must be 0 or more nanoseconds")
        if self.wp == 0 and self.wc == 0:
            raise UsageError("wp and wc are both 0: one side must take some time", hint="give --wp or --wc")
        if self.length < 2:
            raise UsageError(f"a queue of {self.length} is no queue: it must hold 2 items or more")
        if self.kc is not None and not 1 <= self.kc <= self.length:
            raise UsageError(f"kc is {self.kc}: it must be between 1 and the queue's length, {self.length}")

    @property
    def wake_after(self) -> int:
        """kc, or its default."""
        return self.kc if self.kc is not None else max(1, self.length * 3 // 4)


#: Measured by the authors of the model on their virtio producer/consumer device: a VM exit of 1.1 us, an
#: interrupt of 0.58 us, a guest that takes 29 us to wake up. wp and wc vary; 2 us is their usual consumer.
PUBLISHED = Costs(wp=2000, wc=2000, np=1100, nc=583, sp=29000, sc=422, length=512)


@dataclass(frozen=True, slots=True)
class Policy:
    """How the side that runs out of work waits. spin and sleep are nanoseconds; each has a meaning for its
    kind only.
    """

    kind: Kind
    spin: float = 0.0
    sleep: float = 0.0

    def __post_init__(self) -> None:
        if self.kind is Kind.SLEEP and not self.sleep > 0:
            raise UsageError("policy sleep needs to know for how long", hint="give --sleep, in microseconds")
        if self.spin < 0 or self.sleep < 0:
            raise UsageError("a time to spin or to sleep can't be negative")

    def __str__(self) -> str:
        match self.kind:
            case Kind.SLEEP:
                return f"sleep {self.sleep / 1000:g} us"
            case Kind.ADAPTIVE:
                return f"adaptive, spin {self.spin / 1000:g} us"
            case _:
                return str(self.kind.value)
