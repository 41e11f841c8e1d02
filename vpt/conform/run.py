# SPDX-License-Identifier: BSD-2-Clause
"""Running cases one after the other: the act, the questions that follow every act, the verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from vpt.conform.backend import Backend, Holdings
from vpt.conform.case import Case, Skip
from vpt.conform.front_end import PLAIN, Failure, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, GuestMemory, Span
from vpt.conform.stage import Stage, come_in
from vpt.errors import VptError
from vpt.vhost_user import ProtocolFeature, Request, VirtioFeature, feature_names

__all__ = ["VERDICTS", "Result", "Runner", "as_objects", "summary"]

VERDICTS = ("passed", "failed", "crashed", "skipped")
_LOOK_S = 0.005
_PATIENCE_S = 10.0  #: for a back-end that has just been started


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case. why: what was seen, or why it was skipped; empty for those that passed."""

    id: str
    group: str
    rule: str
    source: str
    verdict: str
    why: str
    seconds: float


class Runner:
    """Runs cases against a back-end that has been started. limit_s: how long a case waits for anything."""

    def __init__(self, backend: Backend, *, limit_s: float) -> None:
        self._backend = backend
        self._limit_s = limit_s
        self._neighbour: FrontEnd | None = None
        self._gone = ""  # why there is nothing left to run against
        self.offered = 0
        self.protocol = 0

    def prepare(self) -> None:
        """Ask what is offered, let the neighbour in, and warm up: a first connection may allocate for all."""
        patience_s = max(_PATIENCE_S, self._limit_s)
        try:
            with come_in(self._backend.door, patience_s) as fe:
                self.offered = fe.ask_u64(Request.GET_FEATURES)
                if self.offered & VirtioFeature.PROTOCOL_FEATURES:
                    self.protocol = fe.ask_u64(Request.GET_PROTOCOL_FEATURES)
            self._let_neighbour_in(patience_s)
        except (OSError, Failure) as error:
            raise VptError(
                f"the back-end does not answer to begin with: {error}",
                hint="is it a vhost-user back-end, and does nobody else use its socket?",
            ) from error
        for _ in range(2):
            complaint = self._complaint()
            if complaint:
                raise VptError(
                    f"the back-end does not work to begin with: {complaint}",
                    hint="it must take frames, and hand them to the peer port if there is one",
                )

    def describe(self) -> dict[str, Any]:
        """The back-end, for JSON."""
        return {
            "pid": self._backend.pid,
            "features": feature_names(self.offered, VirtioFeature),
            "protocol_features": feature_names(self.protocol, ProtocolFeature),
        }

    def run(
        self, cases: Iterable[Case], on_result: Callable[[Result], None] = lambda _: None
    ) -> list[Result]:
        """Run them all."""
        results = []
        for case in cases:
            start = time.monotonic()
            verdict, why = self._one(case)
            seconds = round(time.monotonic() - start, 3)
            results.append(Result(case.id, case.group, case.rule, case.source, verdict, why, seconds))
            on_result(results[-1])
        return results

    def close(self) -> None:
        """Send the neighbour home."""
        if self._neighbour is not None:
            self._neighbour.close()
            self._neighbour = None

    # ---- one case ----

    def _one(self, case: Case) -> tuple[str, str]:
        if self._gone:
            return "skipped", self._gone
        lacks = case.lacks(self.offered, self.protocol, peer=self._backend.peer is not None)
        if lacks:
            return "skipped", lacks
        before = self._backend.holdings()
        stage = Stage(self._backend, self._neighbour, self._limit_s)
        try:
            verdict, why = self._act(case, stage)
            touched = not why and not all(memory_is_untouched(fe) for fe in stage.guests)
        finally:
            stage.close()
        if touched:
            verdict, why = "failed", "memory was written that the back-end had not been given"
        after = self._complaint()
        if self._backend.gone():
            return "crashed", self._revive(self._backend.epitaph())
        if after:
            self._revive(after)
            return "failed", "; ".join(filter(None, (why, f"afterwards: {after}")))
        leak = self._leak(before)
        if verdict == "passed" and leak:
            return "failed", leak
        return verdict, why

    def _act(self, case: Case, stage: Stage) -> tuple[str, str]:
        try:
            case.act(stage)
        except Skip as skip:
            return "skipped", str(skip)
        except (Failure, VptError) as error:
            return "failed", str(error)
        except TimeoutError:
            return "failed", f"no answer in {self._limit_s:g} s"
        except ConnectionError:
            return "failed", "the connection was closed"
        return "passed", ""

    # ---- afterwards ----

    def _complaint(self) -> str:
        """What is wrong with the back-end now; empty if a fresh connection works, and the neighbour."""
        end = time.monotonic() + self._limit_s
        while not self._backend.gone():
            stage = Stage(self._backend, self._neighbour, self._limit_s)
            try:
                fe = stage.started(features=int(PLAIN), num=16, memory=GuestMemory([Span(GPA_BASE, MIB)]))
                stage.works(fe, int(end * 1000) & 0xFFFF)
            except (Failure, OSError, VptError) as error:
                # The connection before may be on its way out.
                if time.monotonic() > end:
                    return f"a fresh connection does not work: {str(error) or 'no answer'}"
                time.sleep(_LOOK_S)
            else:
                return ""
            finally:
                stage.close()
        return "the process is gone"

    def _leak(self, before: Holdings | None) -> str:
        end = time.monotonic() + self._limit_s
        while before is not None:
            now = self._backend.holdings()
            if now is None or (now.fds <= before.fds and now.mappings <= before.mappings):
                break
            if time.monotonic() > end:
                return (
                    f"{now.fds - before.fds:+} descriptors and {now.mappings - before.mappings:+} mappings "
                    "of guest memory are held that were not before"
                )
            time.sleep(_LOOK_S)
        return ""

    def _revive(self, why: str) -> str:
        """Start the back-end again, if that is ours to do; the reason passes through."""
        self.close()
        if not self._backend.can_restart:
            self._gone = f"the back-end is no more: {why}"
            return why
        self._backend.start()
        self.prepare()
        return why

    def _let_neighbour_in(self, patience_s: float) -> None:
        if self._backend.peer is None:
            return
        self.close()
        self._neighbour = come_in(self._backend.peer, patience_s).start()
        self._neighbour.set_timeout(self._limit_s)


def memory_is_untouched(fe: FrontEnd) -> bool:
    """Is the memory as it was that nobody was given? True where that is not watched."""
    with suppress(IndexError, ValueError):  # the case has taken it away, or shrunk it
        return fe.memory.untouched()
    return True


def summary(results: Iterable[Result]) -> dict[str, int]:
    """How many of each verdict."""
    counts = Counter(result.verdict for result in results)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def as_objects(results: Iterable[Result]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(result) for result in results]
