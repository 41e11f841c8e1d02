# SPDX-License-Identifier: BSD-2-Clause
"""The micro guest's payload by itself: it is what the host takes it for, and boots everywhere."""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from support.micro_host import accel_or_skip
from vpt import paths
from vpt.bench.micro import Flow, Kick, Machine, MicroGuest, Order, Role, Touch, Wait, payload
from vpt.bench.micro import _desk as desk
from vpt.bench.micro._machine import RAM_SIZE, qemu_command
from vpt.errors import GuestError, MissingError, UsageError
from vpt.qemu import find_qemu

MULTIBOOT_MAGIC = (0x1BADB002).to_bytes(4, "little")
TWINS = {
    "struct micro_order": desk.DeskOrder,
    "struct micro_found": desk.DeskFound,
    "struct micro_result": desk.DeskResult,
    "struct micro_desk": desk.Desk,
}
CONSTANTS = {
    "MICRO_MAGIC": desk.MAGIC,
    "MICRO_VERSION": desk.VERSION,
    "MICRO_DESK_ADDR": desk.DESK_ADDR,
    "MICRO_MAX_BURST": desk.MAX_BURST,
    "MICRO_MIN_FRAME": desk.MIN_FRAME,
    "MICRO_HIST_STEPS": desk.HIST_STEPS,
    "MICRO_HIST_SIZE": desk.HIST_SIZE,
    "MICRO_S_DEAD": desk.STATE_DEAD,
    "MICRO_CMD_OPEN": desk.CMD_OPEN,
    "MICRO_CMD_RUN": desk.CMD_RUN,
    **{f"MICRO_DEV_{d.name}": d for d in desk.Device},
    **{f"MICRO_ROLE_{r.name}": r for r in Role},
    **{f"MICRO_TOUCH_{t.name}": t for t in Touch},
    **{f"MICRO_KICK_{k.name}": k for k in Kick},
    **{f"MICRO_WAIT_{w.name}": w for w in Wait},
    **{f"MICRO_FLOW_{f.name}": f for f in Flow},
}

needs_compiler = pytest.mark.needs("gcc", "make")
needs_qemu = pytest.mark.needs("qemu-system-x86_64", "gcc", "make")


def c_values(expressions: list[str], tmp_path: Path) -> list[int]:
    """What the C compiler makes of expressions over micro.h."""
    lines = "".join(f'\tprintf("%llu\\n", (unsigned long long)({e}));\n' for e in expressions)
    source = tmp_path / "values.c"
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n#include <micro.h>\nint main(void)\n{{\n{lines}}}\n"
    )
    program = tmp_path / "values"
    subprocess.run(["gcc", "-I", paths.guest_driver("micro"), "-o", program, source], check=True)
    return [int(v) for v in subprocess.run([program], capture_output=True, check=True).stdout.split()]


@needs_compiler
def test_desk_is_the_same_in_c_and_python(tmp_path: Path) -> None:
    expected = dict(CONSTANTS)
    for name, twin in TWINS.items():
        expected[f"sizeof({name})"] = ctypes.sizeof(twin)
        for field in twin._fields_:
            at = getattr(twin, field[0])
            expected[f"offsetof({name}, {field[0]})"] = at.offset
            expected[f"sizeof((({name} *)0)->{field[0]})"] = at.size
    assert dict(zip(expected, c_values(list(expected), tmp_path), strict=True)) == expected


@needs_compiler
def test_payload_is_small_and_built_once(tmp_path: Path) -> None:
    elf = payload(tmp_path)
    built = os.stat(elf)
    assert built.st_size < 32 << 10
    assert os.stat(payload(tmp_path)) == built


def test_an_installed_package_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own build left the file beside the sources."""
    (tmp_path / "micro.elf").touch()
    monkeypatch.setattr(paths, "guest_driver", lambda _: tmp_path)
    monkeypatch.setenv("PATH", "")
    assert payload(tmp_path / "cache") == tmp_path / "micro.elf"


def test_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="gcc and make") as caught:
        payload(tmp_path)
    assert "apt-get install" in str(caught.value.hint)


@pytest.fixture(params=["tcg", "kvm"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(accel=accel_or_skip(request.param))


@pytest.mark.vm
@needs_qemu
@pytest.mark.parametrize("board", ["microvm", "q35"])
def test_boots_and_knows_that_there_is_no_device(machine: Machine, board: str, no_leaks: None) -> None:
    with MicroGuest(replace(machine, board=board)) as guest:  # type: ignore[arg-type]
        assert guest.tsc_hz > 1e8
        with pytest.raises(GuestError, match=r"no such device.*ENODEV"):
            guest.open()
        with pytest.raises(GuestError, match=r"no device is open.*ENODEV"):
            guest.run(Order(role=Role.GEN))


@pytest.mark.needs("readelf", "gcc", "make")
def test_what_is_loaded_is_small() -> None:
    """Code, texts and tables, without what is zero at first."""
    headers = subprocess.run(["readelf", "-lW", payload()], capture_output=True, text=True, check=True).stdout
    (load,) = [line.split() for line in headers.splitlines() if line.split()[:1] == ["LOAD"]]
    assert int(load[4], 16) < 14_500


@pytest.mark.vm
@needs_qemu
def test_boots_by_pvh_where_there_is_no_multiboot(machine: Machine, tmp_path: Path) -> None:
    image = payload().read_bytes()
    assert image.count(MULTIBOOT_MAGIC) == 1
    elf = tmp_path / "pvh.elf"
    elf.write_bytes(image.replace(MULTIBOOT_MAGIC, bytes(4)))
    with MicroGuest(machine, elf=elf) as guest:
        assert guest.tsc_hz > 1e8


def broken(folder: Path) -> tuple[Path, int]:
    """A payload with an invalid instruction in its way, and where."""
    image = bytearray(payload().read_bytes())
    symbols = subprocess.run(["nm", payload()], capture_output=True, text=True, check=True).stdout
    entry = next(int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" serve_orders"))
    at = 0x1000 + entry - 0x100000  # micro.lds: one segment, from the file's second page
    image[at : at + 2] = b"\x0f\x0b"
    elf = folder / "broken.elf"
    elf.write_bytes(image)
    return elf, entry


@pytest.mark.vm
@needs_qemu
def test_a_guest_that_gives_up_ends_its_qemu(machine: Machine, tmp_path: Path) -> None:
    """By isa-debug-exit: nothing is left of a run whose host process was killed."""
    elf, _ = broken(tmp_path)
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(RAM_SIZE))
    command = qemu_command(machine, find_qemu(), elf=elf, ram=ram, console=tmp_path / "console")
    assert subprocess.run(command, timeout=60, check=False).returncode == 1
    assert "exception" in (tmp_path / "console").read_text()


@pytest.mark.vm
@needs_qemu
def test_exception_is_reported_with_its_place(machine: Machine, tmp_path: Path) -> None:
    """A payload with an invalid instruction in its way: the trap finds its way to desk and console."""
    elf, entry = broken(tmp_path)
    with pytest.raises(GuestError, match=rf"(?s)took an exception.*exception 6 error 0 at {entry:x}"):
        MicroGuest(machine, elf=elf).start()


@pytest.mark.vm
@needs_qemu
def test_vcpu_runs_where_it_is_told(machine: Machine) -> None:
    cpu = max(os.sched_getaffinity(0))
    with MicroGuest(replace(machine, cpu=cpu)) as guest:
        assert os.sched_getaffinity(guest.vcpu_tid) == {cpu}
    with pytest.raises(UsageError, match="CPU 99999"):
        MicroGuest(replace(machine, cpu=99999)).start()


@pytest.mark.vm
@needs_qemu
def test_qemu_that_refuses_is_quoted(tmp_path: Path) -> None:
    not_elf = tmp_path / "not.elf"
    not_elf.write_bytes(b"x" * 4096)
    with pytest.raises(GuestError, match=r"(?s)QEMU ended with status 1 while booting.*stderr"):
        MicroGuest(Machine(), elf=not_elf).start()


@pytest.mark.parametrize(
    "wrong",
    [
        {"packets": 0},
        {"seconds": 0},
        {"size": 59},
        {"burst": 0},
        {"burst": 513},
        {"rate": 0},
        {"flows": 0},
        {"kick": Kick.EVERY, "kick_every": 8, "burst": 9},
        {"window": 8, "burst": 9},
    ],
    ids=str,
)
def test_order_that_makes_no_sense_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Order(role=Role.GEN, **wrong)  # type: ignore[arg-type]


def test_virtio_mmio_is_for_microvm_only() -> None:
    with pytest.raises(UsageError, match="q35"):
        Machine(board="q35", virtio_mmio=True)
