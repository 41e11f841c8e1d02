# SPDX-License-Identifier: BSD-2-Clause
"""Lines that a peer can cause: bounded, and no kind of them hides another."""

from __future__ import annotations

import logging

import pytest

from vpt.daemon.ratelimit import PortLog


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> PortLog:
    caplog.set_level(logging.INFO, "vpt.test")
    return PortLog(logging.getLogger("vpt.test"), "a")


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_a_peer_that_comes_and_goes_without_end_does_not_hide_its_faults(
    log: PortLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        log.info("front-end connected")
    log.warning("front-end dropped")
    for _ in range(100):
        log.warning("message refused")
    log.error("internal error")
    assert len(said(caplog, logging.INFO)) <= 11  # one more for every five seconds that this took
    assert said(caplog, logging.WARNING)[0] == "port=a front-end dropped"
    assert len(said(caplog, logging.WARNING)) <= 11
    assert said(caplog, logging.ERROR) == ["port=a internal error"]
