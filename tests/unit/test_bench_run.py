# SPDX-License-Identifier: BSD-2-Clause
"""Runner, result file, comparison and command line, with a scenario that measures nothing real."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from support.waiting import until
from vpt import processor
from vpt.bench import programs, registry
from vpt.bench.compare import compare, differences
from vpt.bench.report import page
from vpt.bench.result import Metric, Plot, Point, Result, load, save
from vpt.bench.runner import run
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.stats import LEAST_SAMPLES
from vpt.cli import main
from vpt.errors import GuestError, NotFoundError, UsageError


class Toy(Scenario):
    """Two competitors at two points; `order` is who ran when."""

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "A toy <&>"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(name="ns", unit="ns", better="lower", title="Time"),
        Metric(name="copies", unit="per packet", better="lower", kind="count"),
    )
    reference: ClassVar[str | None] = "plain"
    plots: ClassVar[Sequence[Plot]] = (
        Plot(title="Time", x="bytes", y=["ns"], x_label="bytes", y_label="ns"),
        Plot(
            title="Only one",
            x="bytes",
            y=["ns"],
            x_label="bytes",
            y_label="ns",
            where={"bytes": 64},
            style="bar",
        ),
        Plot(title="None", x="absent", y=["ns"], x_label="", y_label=""),
    )

    def __init__(
        self,
        slow: float = 1.0,
        copies: float = 1.0,
        failing: int = 0,
        broken: Sequence[int] = (),
        dying: int = 0,
    ) -> None:
        self.slow, self.copies, self.failing = slow, copies, failing
        self.dying = dying  # sessions in which what all stand on dies with the first repetition
        self.broken = list(broken)  # the next sessions at these points, in this order
        self.order: list[str] = []
        self.open = 0

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"bytes": 64}, {"bytes": 1500}]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:  # noqa: ARG002
        if self.broken[:1] == [params["bytes"]]:
            del self.broken[0]
            raise GuestError("no guest")
        self.open += 1
        dies, self.dying = self.dying > 0, max(0, self.dying - 1)

        def once(name: str, ns: float) -> Measured:
            self.order.append(name)
            if dies:
                raise GuestError("the guest has died")
            if name == "switch" and self.failing:
                self.failing -= 1
                raise GuestError("not all were taken")
            return Measured({"ns": ns * int(params["bytes"]), "copies": self.copies}, {"raw": [1.0, 2.0]})

        yield {"switch": lambda: once("switch", 2 * self.slow), "plain": lambda: once("plain", 1)}
        self.open -= 1

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        return [f"{len(points)} points"]


@pytest.fixture
def result() -> Result:
    return run([Toy()], Settings(repetitions=LEAST_SAMPLES))


def test_only_the_points_that_were_asked_for_are_measured() -> None:
    done = run([Toy()], Settings(repetitions=1, at={"bytes": ["64"]}))
    assert [p.params for p in done.scenarios[0].points] == [{"bytes": 64}]
    without = run([Toy()], Settings(repetitions=1, at={"bytes": ["64"], "rate": ["1000", ""]}))
    assert [p.params for p in without.scenarios[0].points] == [{"bytes": 64}]
    both = run([Toy()], Settings(repetitions=1, at={"bytes": ["64", "1500"]}))
    assert len(both.scenarios[0].points) == 2


def test_a_result_holds_the_versions_of_the_programs_that_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    says = {"qemu": "7.2.22", "dpdk": None, "openvswitch": "3.1.0"}
    monkeypatch.setattr(programs, "_ASK", {name: lambda name=name: says[name] for name in says})
    toy = Toy()
    monkeypatch.setattr(toy, "programs", (programs.QEMU, programs.DPDK), raising=False)
    used = run([toy, Toy()], Settings(repetitions=1)).versions
    assert used["qemu"] == "7.2.22"
    assert "openvswitch" not in used, "nobody used it"
    assert "dpdk" not in used, "it is not there"


def test_scenarios_name_the_programs_that_they_run() -> None:
    assert {name: set(s.programs) for name in registry.names() if (s := registry.find(name)).programs} == {
        "exits": {"qemu"},
        "control-plane": {"qemu"},
        "vhost-user": {"dpdk", "openvswitch"},
        "vhost-user-latency": {"dpdk"},
    }


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_nothing_is_measured_for_a_file_that_can_not_be_written(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Toy()
    monkeypatch.setattr("vpt.bench.registry.find", lambda name: toy)  # noqa: ARG005
    (tmp_path / "file").touch()
    for path, said in (
        (tmp_path / "absent/r", f"hint: mkdir -p {tmp_path}/absent"),
        (tmp_path / "file/r", "is not a folder"),
        (tmp_path, "it is a folder"),
    ):
        assert main(["bench", "run", "toy", "--quick", option, str(path)]) == 2
        assert said in capsys.readouterr().err
    assert toy.order == []


@pytest.mark.parametrize(
    "arguments", [["report", "absent.json", "--output"], ["model", "--plot"]], ids=["report", "model"]
)
def test_where_a_page_or_a_picture_goes_is_looked_at_first(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments, str(tmp_path / "absent/x.svg")]) == 2
    printed = capsys.readouterr()
    assert "there is no folder" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("cpus", "said"),
    [
        ("9999", "may not use CPU 9999; it may use"),
        ("{0},{0}", "named twice"),
        ("{0}", "--cpus names one only"),
    ],
    ids=["absent", "twice", "one"],
)
def test_cpus_that_will_not_do_are_named(cpus: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = min(os.sched_getaffinity(0))
    assert main(["bench", "run", "switch-copy", "--quick", "--cpus", cpus.format(first)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.native
@pytest.mark.parametrize(
    ("name", "program"),
    [("qemu", "qemu-system-x86_64"), ("dpdk", "dpdk-testpmd"), ("openvswitch", "ovs-vsctl")],
)
def test_each_program_says_its_version(name: str, program: str, need: Callable[[str], None]) -> None:
    """Open vSwitch is one that the benchmark takes along where it is, and that no test needs."""
    if name == "openvswitch" and shutil.which(program) is None:
        pytest.skip("Open vSwitch is not installed: apt-get install openvswitch-switch-dpdk")
    need(program)
    assert re.match(r"\d+\.\d+", programs.versions_of([name])[name])


@pytest.mark.parametrize("at", [{"bytes": ["65"]}, {"colour": ["64"]}])
def test_a_point_that_is_not_there_is_told_with_those_that_are(at: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError, match="no point at") as error:
        run([Toy()], Settings(repetitions=1, at=at))
    assert error.value.hint == "it has bytes=64|1500"


def test_variants_run_in_turn_after_one_that_does_not_count() -> None:
    toy = Toy()
    done = run([toy], Settings(repetitions=3)).scenarios[0]
    first = toy.order[: len(toy.order) // 2]
    assert first[2:] == ["switch", "plain", "plain", "switch", "switch", "plain"]
    assert [[s.repetition for s in v.samples] for v in done.points[0].variants] == [[0, 1, 2], [0, 1, 2]]
    assert toy.open == 0


def test_a_repetition_that_could_not_be_measured_is_taken_again_and_that_is_said() -> None:
    toy = Toy(failing=2)
    scenario = run([toy], Settings(repetitions=1)).scenarios[0]
    assert toy.order[:6] == ["plain", "switch"] * 3  # all of it, so that pairs stay pairs
    assert [len(v.samples) for p in scenario.points for v in p.variants] == [1] * 4
    assert [n for n in scenario.notes if "again" in n] == [
        "Taken again, toy: bytes 64, repetition 0: not all were taken."
    ] * 2


def test_a_variant_that_can_not_be_measured_costs_nobody_else_anything() -> None:
    toy = Toy(failing=3)
    scenario = run([toy], Settings(repetitions=2)).scenarios[0]
    assert [[v.name for v in point.variants] for point in scenario.points] == [["plain"], ["switch", "plain"]]
    assert {len(v.samples) for point in scenario.points for v in point.variants} == {2}
    assert scenario.failed == 1
    assert scenario.notes[-1] == "NOT MEASURED: toy: bytes 64: switch: not all were taken."


def test_a_point_that_does_not_stand_up_at_once_is_set_up_again_and_that_is_said() -> None:
    scenario = run([Toy(broken=[64, 64, 1500])], Settings(repetitions=1)).scenarios[0]
    assert [point.params for point in scenario.points] == [{"bytes": 64}, {"bytes": 1500}]
    assert [n for n in scenario.notes if "again" in n] == [
        "Set up again, toy: bytes 64: no guest.",
        "Set up again, toy: bytes 64: no guest.",
        "Set up again, toy: bytes 1500: no guest.",
    ]
    assert scenario.failed == 0


def test_a_point_at_which_nothing_is_left_to_measure_is_set_up_again_and_that_is_said() -> None:
    steps: list[tuple[int, str]] = []
    toy = Toy(dying=1)
    done = run([toy], Settings(repetitions=2), lambda now, _, what: steps.append((now, what)))
    scenario = done.scenarios[0]
    assert [[v.name for v in point.variants] for point in scenario.points] == [["switch", "plain"]] * 2
    assert {len(v.samples) for point in scenario.points for v in point.variants} == {2}
    assert [n for n in scenario.notes if "Set up again" in n] == [
        "Set up again, toy: bytes 64: the guest has died."
    ]
    assert scenario.failed == 0
    assert toy.open == 0
    begun = [now for now, what in steps if "again" not in what]
    assert begun == [0, *range(6)], "progress goes back, and never past the end"
    assert [what for _, what in steps if "again" in what] == [n for n in scenario.notes if "again" in n]


@pytest.mark.parametrize("make", [lambda: Toy(dying=3), lambda: Toy(broken=[64] * 3)], ids=["dies", "broken"])
def test_no_repetition_is_begun_where_no_variant_is_left_and_progress_goes_on_behind_it(
    make: Callable[[], Toy],
) -> None:
    steps: list[tuple[int, str]] = []
    run([make()], Settings(repetitions=2), lambda now, _, what: steps.append((now, what)))
    begun = [(now, what) for now, what in steps if "again" not in what]
    assert {what for _, what in begun if "bytes 64" in what} <= {"toy: bytes 64, repetition 0 of 2"}
    assert [now for now, what in begun if "bytes 1500" in what] == [3, 4, 5]


def test_a_point_at_which_all_die_each_time_is_left_out() -> None:
    scenario = run([Toy(dying=3)], Settings(repetitions=1)).scenarios[0]
    assert [point.params for point in scenario.points] == [{"bytes": 1500}]
    assert [n for n in scenario.notes if n.startswith("NOT")] == [
        "NOT MEASURED: toy: bytes 64: plain: the guest has died.",
        "NOT MEASURED: toy: bytes 64: switch: the guest has died.",
    ]
    assert scenario.failed == 2


def test_a_point_that_does_not_stand_up_is_left_out() -> None:
    scenario = run([Toy(broken=[64] * 3)], Settings(repetitions=1)).scenarios[0]
    assert [point.params for point in scenario.points] == [{"bytes": 1500}]
    assert scenario.failed == 1
    assert scenario.notes[-1] == "NOT MEASURED: toy: bytes 64: no guest."


def test_nothing_measured_is_no_result() -> None:
    with pytest.raises(GuestError, match="no guest"):
        run([Toy(broken=[64] * 3 + [1500] * 3)], Settings(repetitions=1))


def test_what_could_not_be_measured_shows_in_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After all that could, which is kept."""
    monkeypatch.setattr("vpt.bench.registry.find", lambda name: Toy(broken=[64] * 3))  # noqa: ARG005
    output = tmp_path / "r.json"
    assert main(["bench", "run", "toy", "--quick", "--output", str(output)]) == 1
    printed = capsys.readouterr()
    assert "bytes 1500" in printed.out
    assert "1 of what was asked for could not be measured" in printed.err
    assert load(output).scenarios[0].failed == 1


def test_every_sample_is_kept_and_summaries_follow(result: Result) -> None:
    point = result.scenarios[0].points[1]
    switch = point.variants[0]
    assert switch.values("ns") == [3000] * LEAST_SAMPLES
    assert switch.samples[0].series == {"raw": [1.0, 2.0]}
    ratio = result.scenarios[0].ratio(point, switch, "ns")
    assert ratio is not None
    assert ratio.median == 2
    assert result.scenarios[0].notes == ["2 points"]


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    run([Toy()], Settings(repetitions=2), lambda done, total, what: seen.append((done, total)))  # noqa: ARG005
    assert seen == [(i, 6) for i in range(6)]


def test_a_result_survives_its_file(result: Result, tmp_path: Path) -> None:
    save(result, tmp_path / "r.json")
    assert load(tmp_path / "r.json") == result
    raw = json.loads((tmp_path / "r.json").read_text())
    assert raw["schema"] == "vpt.bench/v1"
    assert {"machine", "versions", "revision", "settings", "scenarios", "created"} <= raw.keys()


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"schema": "vpt.bench/v2"}', '{"schema": "vpt.bench/v1", "extra": 1}']
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UsageError, match=r"bad\.json is not a vpt\.bench/v1 result"):
        load(tmp_path / "bad.json")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        load(tmp_path / "none.json")
    assert caught.value.hint is not None
    assert "vpt bench run" in caught.value.hint


def test_comparison_finds_what_got_worse(result: Result) -> None:
    slower = run([Toy(slow=1.2)], Settings(repetitions=LEAST_SAMPLES))
    verdicts = {(c.point, c.variant, c.metric.name): c.verdict for c in compare(result, slower)}
    assert verdicts["bytes 64", "switch", "ns"] == "worse"
    assert verdicts["bytes 64", "plain", "ns"] == "same"
    assert verdicts["bytes 64", "switch", "copies"] == "same"


def test_of_an_emulated_processor_every_scenario_says_that_times_mean_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "cpuinfo", lambda: {"model name": "QEMU TCG CPU version 2.5+"})
    first, *_ = run([Toy()], Settings(repetitions=1)).scenarios[0].notes
    assert "times mean nothing" in first


def test_numbers_of_another_kind_are_refused(result: Result) -> None:
    """An exit that KVM counted and a dispatch that QEMU counted share a name in no table."""
    other = result.model_copy(deep=True)
    other.scenarios[0].provenance["tier"] = "tcg"
    with pytest.raises(UsageError, match="tier is unknown before, tcg after"):
        list(compare(result, other))


def test_results_of_different_machines_are_told_apart(result: Result) -> None:
    other = result.model_copy(update={"machine": {**result.machine, "cpu": "another"}})
    assert differences(result, result) == []
    assert any("another" in line for line in differences(result, other))


# ---- the registry ----


def test_every_scenario_is_found_under_its_name() -> None:
    found = registry.names()
    assert {"switch-copy", "idle", "wake", "model", "model-here"} <= set(found)
    for name in found:
        scenario = registry.find(name)
        assert scenario.name == name
        known = {m.name for m in scenario.metrics}
        assert all(set(plot.y) <= known for plot in scenario.plots)
        assert scenario.points(Settings())


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        registry.find("nope")
    assert caught.value.hint is not None
    assert "switch-copy" in caught.value.hint


# ---- the command line ----


@pytest.fixture
def two_files(tmp_path: Path, result: Result) -> tuple[str, str]:
    save(result, tmp_path / "a.json")
    save(run([Toy(slow=2, copies=2)], Settings(repetitions=3)), tmp_path / "b.json")
    return str(tmp_path / "a.json"), str(tmp_path / "b.json")


def test_compare_fails_when_asked_to(two_files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of the times there are too few samples; the copies do not vary."""
    assert main(["bench", "compare", *two_files]) == 0
    printed = capsys.readouterr().out
    assert "worse" in printed
    assert "2 undecided, too few samples to tell" in printed
    assert main(["bench", "compare", *two_files, "--fail-on", "count"]) == 1
    assert main(["bench", "compare", two_files[0], two_files[0], "--fail-on", "any"]) == 0


def test_compare_fails_where_nothing_or_not_every_count_could_be_compared(
    two_files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load(Path(two_files[0]))
    files = {name: str(tmp_path / f"{name}.json") for name in ("other", "uncounted")}
    other, uncounted = before.model_copy(deep=True), before.model_copy(deep=True)
    other.scenarios[0].name = "other"
    for sample in uncounted.scenarios[0].points[0].variants[0].samples:
        del sample.values["copies"]
    save(other, Path(files["other"]))
    save(uncounted, Path(files["uncounted"]))
    for name, fail_on in (("other", "count"), ("other", "any"), ("uncounted", "count")):
        assert main(["bench", "compare", two_files[0], files[name], "--fail-on", fail_on]) == 1
        assert f"only in {two_files[0]}: toy: bytes 64: switch: copies" in capsys.readouterr().out
    # What is only in the second file is no failure.
    assert main(["bench", "compare", files["uncounted"], two_files[0], "--fail-on", "count"]) == 0
    assert f"only in {two_files[0]}: toy: bytes 64: switch: copies" in capsys.readouterr().out


def test_a_small_change_is_shown_as_one(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A count that does not vary and is another one is not 1 before, 1 after and worse by 0.0%."""
    files = []
    for name, calls in (("before", 1.0), ("after", 1.0004)):
        changed = result.model_copy(deep=True)
        for sample in (s for p in changed.scenarios[0].points for v in p.variants for s in v.samples):
            sample.values["copies"] = calls
        files.append(str(tmp_path / name))
        save(changed, tmp_path / name)
    assert main(["bench", "compare", *files]) == 0
    (line, *_) = [line for line in capsys.readouterr().out.splitlines() if "worse" in line]
    assert line.split()[-6:] == ["1", "1.0004", "per", "packet", "+0.04%", "worse"]


def test_compare_prints_json(two_files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", *two_files, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == "vpt.bench-compare/v1"
    assert len(printed["changes"]) == 8


def test_run_writes_file_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vpt.bench.registry.find", lambda name: Toy())  # noqa: ARG005
    output, page = tmp_path / "r.json", tmp_path / "r.html"
    assert main(["bench", "run", "toy", "--quick", "--output", str(output), "--report", str(page)]) == 0
    assert "OVER PLAIN" in capsys.readouterr().out
    assert load(output).settings["repetitions"] == 3
    assert page.read_text().startswith("<!doctype html>")


def test_sections_of_several_results_say_whose_they_are(result: Result) -> None:
    """One scenario, measured before and after a change, has two sections of one name."""
    later = result.model_copy(
        update={"created": "2030-01-01T00:00:00+00:00", "revision": {"commit": "f" * 40}}
    )
    sections = page(result, later).split("<section>")[1:]
    assert f"Measured {result.created}, revision " in sections[0]
    assert f"Measured {later.created}, revision {'f' * 12}." in sections[1]
    assert "Measured" not in page(result).partition("<h2>Where")[0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "nope"], 2),
        (["run", "idle", "--at", "ports=nope"], 2),
        (["run"], 2),
        (["run", "idle", "--repetitions", "0"], 2),
        (["run", "idle", "--cpus", "a"], 2),
        (["model", "--wp", "-1"], 2),
        (["model", "--length", "1"], 2),
        (["model", "--latency", "0"], 2),
        (["model", "--latency", "nan"], 2),
        (["model", "--cpu", "0"], 2),
        (["model", "--sleep", "inf"], 2),
        (["model", "--sleep", "1e300"], 2),
        (["model", "--spin", "nan"], 2),
        (["model", "--wp", "1e300"], 2),
        (["model", "--length", "1000000000"], 2),
        (["model", "--plot", "curves.bmp"], 2),
        (["compare", "/nonexistent/a", "/nonexistent/b"], 1),
        (["report", "/nonexistent/a"], 1),
    ],
)
def test_bad_input_has_its_exit_code(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == code
    assert "rror" in capsys.readouterr().err


def test_model_names_a_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "curves.svg"
    assert main(["bench", "model", "--wp", "2481", "--latency", "5", "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "1.45 times slower" in printed
    assert "Use: adaptive" in printed
    assert plot.read_text().startswith("<svg")


def test_model_prints_json_without_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "model", "--cpu", "90", "--json"]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed["schema"] == "vpt.bench-model/v1"
    assert [p["policy"]["kind"] for p in printed["predictions"]] == ["notify", "sleep", "adaptive", "poll"]
    assert printed["advice"]["met"] is True


def test_list_names_all_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list", "--json"]) == 0
    assert [s["name"] for s in json.loads(capsys.readouterr().out)["scenarios"]] == registry.names()


def test_a_run_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vpt.cli", "bench", "run", "idle", "--verbose"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as run:
        until(lambda: any(tmp_path.glob("*/*")), "a vptd to begin in its folder")
        run.terminate()
        assert run.wait(60) != 0
    assert list(tmp_path.iterdir()) == []
