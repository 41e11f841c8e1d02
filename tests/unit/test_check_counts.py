# SPDX-License-Identifier: BSD-2-Clause
"""ci/check-counts: a count that got worse fails, one that was not taken fails; times do not matter."""

from __future__ import annotations

import ast
import itertools
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vpt.bench.registry import find
from vpt.bench.runner import points_of
from vpt.bench.scenario import Settings
from vpt.bench.scenarios import exits
from vpt.bench.scenarios._rig import ATTACHMENTS, POLICIES

CI = Path(__file__).parents[2] / "ci"
BASELINES = sorted((CI / "baselines").glob("*.json"))


def script() -> ModuleType:
    """ci/check-counts as a module."""
    loader = SourceFileLoader("check_counts", str(CI / "check-counts"))
    spec = spec_from_loader("check_counts", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


CHECK_COUNTS = script()


def bounds(path: Path) -> list[dict[str, Any]]:
    """Without lists."""
    found = json.loads(path.read_text())["bounds"]
    return [single for bound in found for single in CHECK_COUNTS.single(bound)]


@pytest.mark.parametrize("path", BASELINES, ids=lambda p: p.stem)
def test_each_bound_is_about_a_count_that_the_scenario_takes(path: Path) -> None:
    """A bound about a point that no run has would fail every run, and one about a time some of them."""
    base = json.loads(path.read_text())
    scenario = find(base["scenario"])
    points = scenario.points(Settings())
    counts = {m.name for m in scenario.metrics if m.kind == "count"}
    for bound in bounds(path):
        assert bound["at"] in points
        assert bound["metric"] in counts
        assert len({"is", "most", "run"} & bound.keys()) == 1
        assert "rate" in bound["at"] or "run" not in bound
        assert bound["why"]


def test_a_run_is_as_long_as_the_scenario_makes_it() -> None:
    assert CHECK_COUNTS.RUN_S == exits._SECONDS


LOADS = [{"rate": 1000}, {"rate": 10_000}, {"rate": 100_000}, {"load": "saturation"}]


def under_kvm() -> list[dict[str, Any]]:
    return [bound for path in BASELINES if path.stem in ("exits-any", "exits-kvm") for bound in bounds(path)]


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_each_device_and_policy_has_bounds_under_kvm(load: dict[str, Any]) -> None:
    at_it = [b for b in under_kvm() if load.items() <= b["at"].items()]
    bound = {(b["at"]["device"], b["what"], b["metric"]) for b in at_it}
    wanted = set(itertools.product(ATTACHMENTS, POLICIES, ("exits", "kicks", "interrupts")))
    # Of a worker that polls or goes by time, so do they.
    wanted |= set(itertools.product(ATTACHMENTS, ("notify", "adaptive"), ("syscalls",)))
    assert wanted - bound == set()


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_a_guest_that_kicks_each_packet_makes_one_kick_and_one_exit(load: dict[str, Any]) -> None:
    """The control: fewer would be as wrong as more, whatever the worker's policy."""
    at = {"device": "virtio-net, kicks each", **load}
    for policy, metric in itertools.product(POLICIES, ("kicks", "exits")):
        (bound,) = [b for b in under_kvm() if (b["at"], b["what"], b["metric"]) == (at, policy, metric)]
        assert bound.get("is") == 1.0


@pytest.mark.parametrize("path", BASELINES, ids=lambda p: p.stem)
def test_a_count_has_one_bound(path: Path) -> None:
    keys = [(json.dumps(b["at"]), b["what"], b["metric"]) for b in bounds(path)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("path", [p for p in BASELINES if p.stem.startswith("exits")], ids=lambda p: p.stem)
def test_an_emulated_l1_measures_every_point_that_has_a_bound(path: Path) -> None:
    """One that was not measured fails the check."""
    few = next(
        ast.literal_eval(node.value)
        for node in ast.parse((CI / "nested/l1.py").read_text()).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FEW"
    )
    at: dict[str, list[str]] = {}
    for key, _, value in (word.partition("=") for word in few):
        at.setdefault(key, []).append(value)
    measured = points_of(find("exits"), Settings(at=at))
    assert [b["at"] for b in bounds(path) if b["at"] not in measured] == []


def check(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CI / "check-counts"), str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(tmp_path: Path, *, copies: float | None) -> subprocess.CompletedProcess[str]:
    values = {"bad": 0.0} if copies is None else {"bad": 0.0, "copies": copies}
    variants = [{"name": "switch", "samples": [{"values": values}]}]
    points = [{"params": {"bytes": n}, "variants": variants} for n in (64, 1500)]
    result = {
        "machine": {},
        "settings": {"scale": 1.0},
        "scenarios": [{"name": "switch-copy", "provenance": {}, "points": points}],
    }
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    return check(file)


def worst(bound: dict[str, Any]) -> float:
    """What a count may be, without what is allowed beyond it."""
    at_scale_1 = bound["run"] / (bound["at"]["rate"] * exits._SECONDS) if "run" in bound else 0.0
    return max(bound.get("is", bound.get("most", at_scale_1)), 0.001)


def doctored(times: float, cpu: str = "A processor") -> dict[str, Any]:
    """A result in which each count of each baseline is so many times what it may be; none: a thousandth."""
    scenarios = []
    for path in BASELINES:
        base = json.loads(path.read_text())
        points = [
            {
                "params": bound["at"],
                "variants": [{"name": bound["what"], "samples": [{"values": values}]}],
            }
            for bound in bounds(path)
            for values in [{bound["metric"]: times * worst(bound), "mpps": bound["at"].get("rate", 0) / 1e6}]
        ]
        tier = base.get("tiers", ["any"])[0]
        scenarios.append({"name": base["scenario"], "provenance": {"tier": tier}, "points": points})
    return {"machine": {"cpu": cpu}, "settings": {"scale": 1.0}, "scenarios": scenarios}


def test_each_count_of_each_baseline_made_twice_as_bad_fails(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(doctored(2)))
    verdicts = [line for line in check(file).stdout.splitlines() if ", allowed " in line]
    assert len(verdicts) == sum(len(bounds(path)) for path in BASELINES)
    assert [line for line in verdicts if not line.startswith("FAIL")] == []


def test_where_the_processor_is_emulated_one_per_burst_is_nothing(tmp_path: Path) -> None:
    """But a kick too many per packet is one there, too."""
    file = tmp_path / "result.json"
    file.write_text(json.dumps(doctored(2, "QEMU TCG CPU version 2.5+")))
    verdicts = [line for line in check(file).stdout.splitlines() if ", allowed " in line]
    nothing = "allowed 0..0.015625"
    assert {line.startswith("FAIL") for line in verdicts if line.endswith(nothing)} == {False}
    assert {line.startswith("FAIL") for line in verdicts if not line.endswith(nothing)} == {True}


def test_what_may_be_passes(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(doctored(1)))
    failed = [line for line in check(file).stdout.splitlines() if ", allowed " in line and "FAIL" in line]
    # Of frames that are damaged there may be none, and a thousandth is too many.
    assert all(": bad: " in line for line in failed)


def test_what_may_be_once_in_a_run_may_be_so_of_a_guest_that_was_held_up(tmp_path: Path) -> None:
    """It sends a fifth of its packets, say, so that one kick in a run is five times as many per packet."""
    result = doctored(0)
    held_up = {"device": "passthrough", "rate": 10_000}
    for scenario in result["scenarios"]:
        for point in scenario["points"]:
            values = point["variants"][0]["samples"][0]["values"]
            if point["params"] == held_up and point["variants"][0]["name"] == "sleep" and "kicks" in values:
                values |= {"kicks": 3 / 600, "mpps": 0.002}
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    assert "ok   exits: device passthrough, rate 10000: sleep: kicks: 0.005," in check(file).stdout


def test_counts_as_they_should_be_pass(tmp_path: Path) -> None:
    done = run(tmp_path, copies=1.0)
    assert done.returncode == 0, done.stdout


def test_a_second_copy_fails(tmp_path: Path) -> None:
    done = run(tmp_path, copies=2.0)
    assert done.returncode == 1
    assert "FAIL switch-copy: bytes 64: switch: copies: 2, allowed 1..1" in done.stdout


def test_a_count_that_was_not_taken_fails(tmp_path: Path) -> None:
    done = run(tmp_path, copies=None)
    assert done.returncode == 1
    assert "not measured" in done.stdout


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    command = [sys.executable, str(CI / "check-counts"), str(tmp_path / "x.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not a result" in done.stderr


def test_a_claim_about_exits_that_is_missed_fails_and_one_about_times_does_not(tmp_path: Path) -> None:
    """Adaptive must take no more exits than event index, whatever either takes on this machine."""
    run(tmp_path, copies=1.0)
    file = tmp_path / "result.json"
    result = json.loads(file.read_text())
    claim = "at 100000 packets/s, adaptive passthrough no more exits than virtio-net with event index: 0.9"
    rate = "MISSED: passthrough at saturation, adaptive, >= 20 Mpps: 14.5"
    for note, code in (
        (f"MISSED: {claim}", 1),
        (f"Undecided: {claim}", 0),
        (f"Reached: {claim}", 0),
        (rate, 0),
    ):
        result["scenarios"][0]["notes"] = [note]
        file.write_text(json.dumps(result))
        done = check(file)
        assert done.returncode == code, done.stdout
        assert (f"FAIL switch-copy: {note}" in done.stdout) == bool(code)
