# SPDX-License-Identifier: BSD-2-Clause
"""What a measurement of exits consists of. Data only: no file is opened here and nothing is computed.

Identity   where numbers come from: tier, source, what is counted, of which VM
Sample     all counters at one moment, by unit (a vCPU, the VM, a device region, a port)
Recording  an identity and its samples: what `vpt exits record` keeps in a file
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["SCHEMA", "Identity", "Machine", "Quantity", "Recording", "Sample", "Tier"]

SCHEMA = "vpt.exits/v1"


class Tier(StrEnum):
    """What stands behind an exit number. Numbers of different tiers are never compared."""

    KVM = "kvm"  # hardware virtualization
    KVM_PVM = "kvm-pvm"  # a software KVM: only what runs unprivileged runs natively
    TCG = "tcg"  # an emulator: exits do not exist


class Quantity(StrEnum):
    """What a source counts. Only like is compared with like."""

    EXITS = "exits"  # every exit that KVM took
    USERSPACE_EXITS = (
        "userspace_exits"  # those that went on to the VMM; what an ioeventfd absorbs is not among them
    )
    DISPATCHES = "dispatches"  # accesses that QEMU's device model served
    KICKS = "kicks"  # doorbells that vpt itself received


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Identity(_Model):
    """Where numbers come from; two recordings are compared only where this allows it."""

    tier: Tier
    tier_evidence: str  # why that tier, in words
    source: str
    quantity: Quantity
    vm: str  # as the user named it
    qemu: str | None = None  # version, where it could be asked
    missing: tuple[str, ...] = ()  # counters that were asked for and do not exist here: "n/a", never 0
    kicks_per_query: int = 0  # signal_exits that each reading itself adds to each vCPU


class Sample(_Model):
    """All counters at one moment."""

    at_ns: int = Field(ge=0)  # CLOCK_MONOTONIC
    units: dict[str, dict[str, int]]  # "vcpu0" -> "exits" -> value
    cpu_ms: int | None = None  # CPU time of the VM's process: says whether the guest ran at all
    packets: int | None = None  # total of the ports that the user named
    stopped: bool = False  # the VM was paused, or a signal had stopped its process


class Machine(_Model):
    """The machine and the versions that a recording was made with."""

    cpu: str
    cores: int
    kernel: str
    python: str
    vpt: str


class Recording(_Model):
    """A file of `vpt exits record`."""

    schema_: Literal["vpt.exits/v1"] = Field(default="vpt.exits/v1", alias="schema")
    kind: Literal["recording"] = "recording"
    started: str  # ISO 8601, UTC
    machine: Machine
    identity: Identity
    command: tuple[str, ...]
    command_rc: int | None  # None: it did not come to an end
    complete: bool  # False: the VM or a source went away, or Ctrl-C was pressed, before the command ended
    ended: str | None = None  # what happened to it then
    notes: tuple[str, ...] = ()  # what was known of the VM and its ports when the recording began
    samples: tuple[Sample, ...] = Field(min_length=1)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
