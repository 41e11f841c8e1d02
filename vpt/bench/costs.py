# SPDX-License-Identifier: BSD-2-Clause
"""What a producer and a consumer cost, and how the one that waits does it.

The two are whatever stands at the ends of a queue: a guest's driver and the switch, the switch and a guest,
two threads. All times are nanoseconds. The names are those of the model (`vpt.bench.model`), in lower case.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vpt.errors import UsageError

__all__ = ["LONGEST_NS", "PUBLISHED", "SPIN_LONGEST", "Costs", "Kind", "Policy"]

#: 2 to the power of it: idle periods that go by without a spin where spins are in vain, at most (spin.h).
SPIN_LONGEST = 6
#: A quarter of an hour. Beyond it sums of times, in double precision, lose their nanoseconds.
LONGEST_NS = 1e12
#: Quotients by less overflow.
_LEAST_NS = 1e-3
#: virtio's.
_LONGEST_QUEUE = 32768


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
            if not 0 <= getattr(self, name) <= LONGEST_NS:
                raise UsageError(
                    f"cost {name} is {getattr(self, name)}: it must be from 0 to {LONGEST_NS:g} nanoseconds"
                )
        if max(self.wp, self.wc) < _LEAST_NS:
            raise UsageError(
                f"wp is {self.wp:g} and wc {self.wc:g}: one side must take {_LEAST_NS:g} nanoseconds or more",
                hint="give --wp or --wc",
            )
        if not 2 <= self.length <= _LONGEST_QUEUE:
            raise UsageError(f"a queue of {self.length}: it must hold from 2 to {_LONGEST_QUEUE} items")
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
        for what, time in (("spin", self.spin), ("sleep", self.sleep)):
            if not 0 <= time <= LONGEST_NS:
                raise UsageError(
                    f"a time to {what} of {time / 1000:g} us: it must be from 0 to {LONGEST_NS / 1000:g} us"
                )

    def __str__(self) -> str:
        match self.kind:
            case Kind.SLEEP:
                return f"sleep {self.sleep / 1000:g} us"
            case Kind.ADAPTIVE:
                return f"adaptive, spin {self.spin / 1000:g} us"
            case _:
                return str(self.kind.value)
