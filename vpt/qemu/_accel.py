# SPDX-License-Identifier: BSD-2-Clause
"""KVM or TCG? Decided by booting Linux, for a /dev/kvm that opens is no promise.

A software KVM may exist and not be able to run a Linux guest: QEMU then hangs without a word. So a tiny guest
is booted under KVM with a time-out, once per host boot, host kernel, QEMU and guest kernel; the verdict is
kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Literal

from vpt.qemu._binary import Qemu
from vpt.qemu._cmdline import Machine, command_line
from vpt.qemu._console import console_text
from vpt.qemu._kvm import kvm_fault

__all__ = ["Accel", "probe_accel"]

_KVM_BOOT_S = 12.0


@dataclass(frozen=True)
class Accel:
    """How guests run here, and in one line why."""

    name: Literal["kvm", "tcg"]
    why: str


def _await_marker(argv: list[str], marker: bytes, timeout_s: float) -> bytes | None:
    """Run a command until its output contains `marker`: None if it does, else what it did print."""
    seen = b""
    end = time.monotonic() + timeout_s
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while marker not in seen:
                    if not selector.select(max(0.0, end - time.monotonic())):
                        return seen
                    chunk = os.read(process.stdout.fileno(), 65536)
                    if not chunk:
                        return seen
                    seen += chunk
                return None
        finally:
            process.kill()


def _boot_kvm(kernel: Path, initrd: Path, marker: bytes, qemu: Qemu, timeout_s: float) -> Accel:
    started = time.monotonic()
    argv = command_line(Machine(kernel=kernel, initrd=initrd, accel="kvm", name="probe"), qemu)
    output = _await_marker(argv, marker, timeout_s)
    took = time.monotonic() - started
    if output is None:
        return Accel("kvm", f"a Linux guest booted under KVM in {took:.1f} s")
    said = _last_words(output)
    if took < timeout_s:
        return Accel("tcg", f"QEMU ended at once under KVM, saying: {said}")
    return Accel("tcg", f"no Linux guest came up under KVM within {timeout_s:.0f} s; it last said: {said}")


def _last_words(output: bytes) -> str:
    lines = console_text(output).strip().splitlines()
    if not lines:
        return "nothing"
    return shorten(lines[-1].removeprefix("qemu-system-x86_64: "), 100, placeholder=" ...")


def _cache_key(kernel: Path, qemu: Qemu) -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    guest = f"{kernel} {kernel.stat().st_mtime_ns}"
    text = "\n".join([boot_id, os.uname().release, f"{qemu.path} {qemu}", guest])
    return hashlib.sha256(text.encode()).hexdigest()


def _cached(path: Path, key: str) -> Accel | None:
    try:
        record = json.loads(path.read_text())
        if record["key"] != key:
            return None
        return Accel(record["name"], record["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def probe_accel(
    kernel: Path,
    initrd: Path,
    qemu: Qemu,
    *,
    marker: bytes,
    cache: Path,
    timeout_s: float = _KVM_BOOT_S,
) -> Accel:
    """Find out how guests run here. `marker` is what the initrd's init prints on its console when it is up.

    `cache` is a folder; a verdict found there is used as long as host boot, host kernel, QEMU and guest
    kernel are the same. Takes `timeout_s` seconds at most.
    """
    fault = kvm_fault()
    if fault is not None:
        return Accel("tcg", str(fault))
    record = cache / "accel.json"
    key = _cache_key(kernel, qemu)
    known = _cached(record, key)
    if known is not None:
        return known
    verdict = _boot_kvm(kernel, initrd, marker, qemu, timeout_s)
    with suppress(OSError):  # a cache that can't be written costs time, nothing else
        cache.mkdir(parents=True, exist_ok=True)
        fresh = record.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, **asdict(verdict)}))
        fresh.replace(record)
    return verdict
