# SPDX-License-Identifier: BSD-2-Clause
"""What vptd and the keeper refuse on their command lines, before they do anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vpt.daemon import keeper
from vpt.daemon import main as vptd
from vpt.errors import EXIT_USAGE

Main = Callable[[Sequence[str]], int]


@pytest.mark.parametrize("main", [vptd.main, keeper.main], ids=["vptd", "keeper"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e999", "soon", ""])
def test_a_time_that_is_none_is_wrong_usage(
    main: Main, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--runtime-dir", str(tmp_path / "run"), f"--linger={value}"])
    assert caught.value.code == EXIT_USAGE
    said = capsys.readouterr().err
    assert f"argument --linger: a number of seconds, 0 or more, not {value!r}" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["0", "33", "nan", "1.5", "many"])
def test_a_number_of_workers_that_is_none_is_wrong_usage(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        vptd.main([f"--workers={value}"])
    assert caught.value.code == EXIT_USAGE
    assert f"argument --workers: 1 to 32 workers, not {value!r}" in capsys.readouterr().err
