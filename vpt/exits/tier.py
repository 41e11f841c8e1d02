# SPDX-License-Identifier: BSD-2-Clause
"""Which kind of KVM this host has, from evidence.

A CPU that offers neither VT-x nor SVM can't run a hardware KVM, so a KVM that works there is a software one
(PVM). That is the only certain sign: CPUID, the capabilities and the list of MSRs that /dev/kvm reports are
those of a hardware KVM, and `io_exits`, which never moves under PVM, needs a guest that does port I/O to
say anything. Where the CPU does offer one, the vendor module that is in use says which.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from vpt.exits.model import Tier

__all__ = ["HostEvidence", "kvm_tier", "read_host_evidence"]

_HARDWARE = ("kvm_intel", "kvm_amd")
_SOFTWARE = "kvm_pvm"


@dataclass(frozen=True, slots=True)
class HostEvidence:
    """What the host says about itself. `modules`: name -> times in use, None for one that can't tell."""

    arch: str
    cpu_flags: frozenset[str]
    modules: dict[str, int | None]


def kvm_tier(host: HostEvidence) -> tuple[Tier, str]:
    """Tier of a VM that runs under this host's KVM, and why."""
    if host.arch != "x86_64":
        return Tier.KVM, f"KVM on {host.arch} is always hardware virtualization"
    extension = next((f for f in ("vmx", "svm") if f in host.cpu_flags), None)
    if extension is None:
        return Tier.KVM_PVM, "the CPU offers neither vmx nor svm, so this KVM is a software one"
    if _SOFTWARE not in host.modules:
        return Tier.KVM, f"the CPU offers {extension} and no software KVM is loaded"
    if host.modules[_SOFTWARE]:
        return Tier.KVM_PVM, f"the module {_SOFTWARE} is in use"
    if any(host.modules.get(name) for name in _HARDWARE):
        return Tier.KVM, "the hardware's KVM module is in use"
    if any(name in host.modules for name in _HARDWARE):
        return Tier.KVM, f"the CPU offers {extension} and its module is there; {_SOFTWARE} shows no use"
    return Tier.KVM_PVM, f"{_SOFTWARE} is the only KVM module"


def read_host_evidence(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> HostEvidence:
    """Gather the evidence of this host."""
    flags: frozenset[str] = frozenset()
    for line in (proc / "cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = frozenset(line.partition(":")[2].split())
            break
    modules = {
        name: _use_count(sys / "module" / name)
        for name in (*_HARDWARE, _SOFTWARE)
        if (sys / "module" / name).is_dir()
    }
    return HostEvidence(platform.machine(), flags, modules)


def _use_count(module: Path) -> int | None:
    try:
        return int((module / "refcnt").read_text())
    except (OSError, ValueError):
        return None
