# SPDX-License-Identifier: BSD-2-Clause
"""The worked examples of docs/examples, applied by `vpt apply` with all their machines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.vptd import Vptd
from vpt.errors import EXIT_DIFFERENT, EXIT_FAILED, EXIT_OK
from vpt.provision.record import Store

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(600),
    pytest.mark.needs(
        "qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make", "dropbear", "py:paramiko"
    ),
]

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
# Ten guests boot on two CPUs, which other tests use as well.
APPLY_S = 500.0

Vpt = Callable[..., str]


@pytest.fixture(scope="module")
def lab() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def vpt(lab: Vptd) -> Iterator[Vpt]:
    """vpt("apply", ...): what it prints. At the end, all is pruned, and nothing may be left."""

    def run(*arguments: str, code: int = EXIT_OK, stdin: str | None = None) -> str:
        argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(lab.paths.runtime), *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=APPLY_S, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield run
    run("apply", "-", "--prune", stdin="switches: []\n")
    assert lab.call("list") == {"switches": [], "ports": []}
    guests = Store(lab.paths.runtime / "state").path
    assert [path.name for path in guests.iterdir()] == [".lock"]
    assert "state/guests/" not in _processes(lab.paths.runtime)


def _processes(folder: Path) -> str:
    """Command lines of those that have to do with that folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        lines += [line] if str(folder) in line else []
    return "\n".join(lines)


def pings(vpt: Vpt, source: str, *addresses: str) -> None:
    """Each address answers all of three."""
    script = "for a; do ping -c 3 -i 0.2 -W 10 $a >/dev/null || { echo no answer from $a; exit 1; }; done"
    vpt("guest", "run", source, "--", "sh", "-c", script, "sh", *addresses)


def test_two_vms_reach_each_other_and_a_second_apply_leaves_them_alone(lab: Vptd, vpt: Vpt) -> None:
    file = str(EXAMPLES / "two-vms.yaml")
    assert "add vm vm2: tiny, 1 CPU, 96 MiB, on vm2" in vpt("diff", file, code=EXIT_DIFFERENT)
    vpt("apply", file)
    pings(vpt, "vm1", "10.0.1.2")
    assert vpt("apply", file, "--prune") == "nothing to do\n"
    assert vpt("diff", "-", "--prune", stdin=vpt("export")) == "nothing to do\n"
    pings(vpt, "vm2", "10.0.1.1")

    # One that was stopped is started; one that is to be another is only replaced when that is asked for.
    vpt("guest", "stop", "vm1")
    changed = (EXAMPLES / "two-vms.yaml").read_text().replace("10.0.1.2/24", "10.0.1.3/24")
    said = vpt("diff", "-", stdin=changed, code=EXIT_DIFFERENT)
    assert "start vm vm1: it was stopped" in said
    assert "delete vm vm2: ports" in said
    assert "[needs --replace]" in said
    vpt("apply", "-", stdin=changed, code=EXIT_FAILED)
    vpt("apply", "-", "--replace", stdin=changed)
    pings(vpt, "vm1", "10.0.1.3")


def test_a_port_made_for_a_guest_goes_with_the_one_that_took_its_place(lab: Vptd, vpt: Vpt) -> None:
    vpt("switch", "add", "sw0")
    vpt("guest", "boot", "vm1", "--switch", "sw0", "--memory", "96")
    running = vpt("export")
    changed = running.replace("memory_mib: 96", "memory_mib: 112")
    assert changed != running
    vpt("apply", "-", "--replace", stdin=changed)
    assert [port["name"] for port in lab.call("port.list")["ports"]] == ["vm1"]
    vpt("guest", "rm", "vm1")
    assert lab.call("port.list")["ports"] == []


def test_a_machine_that_does_not_come_up_takes_back_all_that_was_done(lab: Vptd, vpt: Vpt) -> None:
    """Also the machine that did, with its port and its switch."""
    text = (EXAMPLES / "two-vms.yaml").read_text()
    broken = text.replace(
        "  - name: vm2\n    image", "  - name: vm2\n    append: rdinit=/bin/absent\n    image"
    )
    assert broken != text
    said = vpt("apply", "-", stdin=broken, code=EXIT_FAILED)
    assert "guest vm2: its kernel panicked" in said
    assert "so all that was changed has been changed back" in said
    assert "its console ends with:" in said
    assert lab.call("list") == {"switches": [], "ports": []}
    assert vpt("guest", "ls").count("\n") == 1


def test_a_router_joins_two_networks(lab: Vptd, vpt: Vpt) -> None:
    """Each network is a switch, so nothing but the router could have carried the ping."""
    vpt("apply", str(EXAMPLES / "router.yaml"))
    pings(vpt, "desk", "10.0.3.2")
    for switch, port in (("office", "router-office"), ("servers", "router-servers")):
        macs = {entry["port"] for entry in lab.call("switch.macs", name=switch)["macs"]}
        assert macs == {port, "desk" if switch == "office" else "web"}


def test_ten_vms_from_one_template_reach_each_other(lab: Vptd, vpt: Vpt) -> None:
    vpt("apply", str(EXAMPLES / "ten-vms.yaml"))
    pings(vpt, "vm1", *(f"10.0.4.{number}" for number in range(2, 11)))
    address = vpt("guest", "run", "vm10", "--", "cat", "/sys/class/net/vpt0/address")
    assert address.strip() == "52:54:00:00:03:0a"
    assert vpt("diff", str(EXAMPLES / "ten-vms.yaml"), "--prune") == "nothing to do\n"
