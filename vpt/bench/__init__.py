# SPDX-License-Identifier: BSD-2-Clause
"""Measuring: scenarios, what they are compared with, and the model that says what to expect.

    scenarios/    one file per scenario; `registry` finds them
    runner        repetitions in turn with the competitor, on one machine, in one run
    result        what a run leaves behind: a JSON file of schema vpt.bench/v1
    compare       two such files against each other
    report        one such file as a page for people
    model         notify, sleep, poll, adaptive: throughput, latency, notifications, CPU
    simulate      the same protocol in virtual time
    measure       the model's costs, measured on this machine

Heavy modules (pydantic, the C extension) are imported by those that need them, so that `vpt --help` does not
wait.
"""

__all__: list[str] = []
