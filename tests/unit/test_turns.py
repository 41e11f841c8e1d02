# SPDX-License-Identifier: BSD-2-Clause
"""Commands that change virtual machines for one vptd take turns."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vpt.errors import TimeoutExpired
from vpt.libvirt_plugin import _turns
from vpt.libvirt_plugin._turns import in_turn


def test_nobody_comes_in_between(tmp_path: Path) -> None:
    """Each reads a number and writes the next one, with a look elsewhere in between."""
    number = tmp_path / "number"
    number.write_text("0")

    def one(_: int) -> None:
        with in_turn(str(tmp_path)):
            found = int(number.read_text())
            list(tmp_path.iterdir())
            number.write_text(str(found + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(40)))
    assert number.read_text() == "40"


def test_a_turn_that_does_not_come_ends_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_turns, "_TURN_S", 0.0)
    with in_turn(str(tmp_path)):
        with pytest.raises(TimeoutExpired) as caught, in_turn(str(tmp_path)):
            pass
        assert "pgrep" in str(caught.value.hint)


def test_other_vptds_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_turns, "_TURN_S", 0.0)
    (tmp_path / "a").mkdir()
    with in_turn(str(tmp_path / "a")), in_turn(str(tmp_path)), in_turn(str(tmp_path / "gone")):
        pass


def test_who_is_killed_gives_its_turn_back(tmp_path: Path) -> None:
    program = "import sys; from vpt.libvirt_plugin._turns import in_turn\n" + (
        "with in_turn(sys.argv[1]): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        other.send_signal(signal.SIGKILL)
        other.wait()
        with in_turn(str(tmp_path)):
            pass
