# SPDX-License-Identifier: BSD-2-Clause
"""libFuzzer, by atheris, on what a front-end's socket leads to.

    python tests/fuzz_vhost_user.py [LIBFUZZER_OPTION...] [CORPUS...]

Seeds made from a front-end that behaves are added to the corpus. `ci/test` runs it for ten seconds, or for
--fuzz-seconds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["vpt.vhost_user", "vpt.daemon.transports.vhost"], enable_loader_override=False
):
    from support.fuzz_vhost_user import Target, seeds


def main(argv: list[str]) -> None:
    """Until libFuzzer's options say that it is enough."""
    with tempfile.TemporaryDirectory(prefix="vpt-fuzz-") as folder:
        for name, data in seeds().items():
            Path(folder, name).write_bytes(data)
        target = Target()

        def one_input(data: bytes) -> None:
            target.one_input(data)

        atheris.Setup([*argv, folder], one_input)
        atheris.Fuzz()


main(sys.argv)
