# SPDX-License-Identifier: BSD-2-Clause
"""Manual pages and completion, as the build makes them, are complete and taken by those who read them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vpt.cli._table import COMMANDS

pytestmark = pytest.mark.native  # groff, systemd and shells are not built with sanitizers

GENERATE = Path(__file__).parents[2] / "packaging/generate.py"


def _generated(name: str) -> str:
    argv = [sys.executable, str(GENERATE), "9.9", name]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def _formatted(page: str) -> str:
    argv = ["groff", "-man", "-ww", "-Tascii", "-P-c", "-P-b", "-P-u", "-rLL=200n"]
    done = subprocess.run(argv, input=page, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == "", "groff warns of nothing"
    return done.stdout


@pytest.mark.needs("groff")
def test_the_manual_has_every_command_and_groff_finds_nothing_wrong() -> None:
    text = _formatted(_generated("vpt.1"))
    assert "vpt 9.9" in text
    for row in COMMANDS:
        assert f"vpt {row.name}" in text
    assert "--spin-us INTEGER" in text, "options of commands of groups, too"


@pytest.mark.needs("groff")
def test_the_manual_of_vptd_has_every_option() -> None:
    text = _formatted(_generated("vptd.8"))
    done = subprocess.run([sys.executable, "-m", "vpt.daemon.main", "--help"], capture_output=True, text=True)
    options = {word.strip("[],") for word in done.stdout.split() if word.strip("[],").startswith("--")}
    assert len(options) > 8
    assert not {option for option in options if option not in text}


def test_bash_completes_commands_with_the_generated_script(tmp_path: Path) -> None:
    """A real bash runs it, with vpt on PATH, as if TAB had been pressed after `vpt swi`."""
    script = tmp_path / "vpt.bash"
    script.write_text(_generated("vpt.bash"))
    program = tmp_path / "vpt"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vpt.cli "$@"\n')
    program.chmod(0o755)
    press = f". {script}; COMP_WORDS=(vpt swi); COMP_CWORD=1; _vpt_completion vpt; echo ${{COMPREPLY[*]}}"
    done = subprocess.run(
        ["bash", "-c", press],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert (done.stdout, done.stderr) == ("switch\n", "")


@pytest.mark.parametrize("name", ["_vpt", "vpt.fish"])
def test_other_shells_get_a_script_that_asks_vpt(name: str) -> None:
    assert "_VPT_COMPLETE=" in _generated(name)
