# SPDX-License-Identifier: BSD-2-Clause
"""The tutorial does what it says: its commands are run, in one shell, and what it shows is what they print.

A word with a digit in it may be another one: a rate, an address, a hash. Lines that the page leaves out are
no matter, those that it shows come in its order.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGE = TOP / "docs" / "tutorial.md"

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600), pytest.mark.needs("qemu-system-x86_64", "dropbear")]


def steps() -> Iterator[tuple[str, list[str]]]:
    """(command, lines shown below it) of each command of the page."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = step.splitlines()
            yield command, [line for line in shown if line]


def as_pattern(line: str, runtime_dir: str) -> str:
    """What matches a line of the page, which shows root's folder: printed commands name any other."""
    line = line.replace("/run/vpt/", f"{runtime_dir}/")
    elsewhere = rf"vpt(?:\s+--runtime-dir\s+{re.escape(runtime_dir)})?"
    words = (r"\S+" if re.search(r"\d", word) else re.escape(word) for word in line.split())
    return r"\s*" + r"\s+".join(elsewhere if word == "vpt" else word for word in words) + r"\s*"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    # Not pytest's tmp_path: a socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="vpt-tut-") as folder:
        yield {**os.environ, "VPT_RUNTIME_DIR": f"{folder}/run", "CI": ""}
        subprocess.run(
            ["vpt", "--runtime-dir", f"{folder}/run", "daemon", "stop", "--no-keep"],
            capture_output=True,
            check=False,
        )


def test_the_tutorial_does_what_it_says(environment: dict[str, str], tmp_path: Path) -> None:
    page = list(steps())
    script = [f"cd {TOP}"]
    for i, (command, _) in enumerate(page):
        # What a command leaves behind goes elsewhere than into the checkout.
        if i == 2:
            script.append(f"cd {tmp_path}")
        script += [f"echo '<<< {i}'", f"{command}", f"echo '>>> {i}' $?"]
    done = subprocess.run(
        ["bash"], input="\n".join(script), env=environment, text=True, check=False, timeout=550,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    for i, (command, shown) in enumerate(page):
        found = re.search(rf"^<<< {i}$(.*?)^>>> {i} (\d+)$", done.stdout, re.MULTILINE | re.DOTALL)
        assert found, f"$ {command}\ndid not come back: {done.stdout[-2000:]}"
        assert found[2] == "0", f"$ {command}\nended with {found[2]}: {found[1]}"
        lines = iter(found[1].splitlines())
        for line in shown:
            pattern = as_pattern(line, environment["VPT_RUNTIME_DIR"])
            assert any(re.fullmatch(pattern, printed) for printed in lines), (
                f"$ {command}\ndid not print {line!r}, but:\n{found[1]}"
            )
    assert page[0][0] == "ci/quickstart --setup-only", "the page begins where a new user does"
