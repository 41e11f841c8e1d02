# SPDX-License-Identifier: BSD-2-Clause
"""vpt bench: list, run, compare, report, model."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vpt.cli._common import FiniteFloat, emit_json, json_option, print_table, stoppable
from vpt.cli._output import output_option
from vpt.cli._system_errors import writing
from vpt.errors import VptError

if TYPE_CHECKING:
    from vpt.bench.advice import Advice
    from vpt.bench.compare import Change
    from vpt.bench.model import Costs, Prediction
    from vpt.bench.result import Result, ScenarioResult
    from vpt.bench.runner import Progress
    from vpt.bench.scenario import Scenario, Settings

__all__ = ["bench"]

_FILE = click.Path(path_type=Path, dir_okay=False)
_COSTS = (
    ("wp", 2500.0, "Producer's work per item."),
    ("wc", 2000.0, "Consumer's work per item."),
    ("np", 1100.0, "What notifying the consumer takes the producer (a kick)."),
    ("nc", 583.0, "What notifying the producer takes the consumer (an interrupt)."),
    ("sp", 29000.0, "From an interrupt until the producer works."),
    ("sc", 422.0, "From a kick until the consumer works."),
)


@click.group()
def bench() -> None:
    """Measure, compare what was measured, and say what to expect.

    A scenario runs in turn with what it is compared with, several times, and every sample is kept. Numbers
    are medians with what the middle half of the samples covers.

    \b
    Examples:
      vpt bench list
      vpt bench run switch-copy
      vpt bench run switch-copy idle --output before.json --report before.html
      vpt bench compare before.json after.json
      vpt bench model --wp 2500 --latency 50 --cpu 60
    """


@bench.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the scenarios there are.

    \b
    Example:
      vpt bench list
    """
    from vpt.bench.registry import find, names

    found = [find(name) for name in names()]
    if as_json:
        emit_json("bench-list", {"scenarios": [{"name": s.name, "title": s.title} for s in found]})
    else:
        print_table(["SCENARIO", "WHAT IT MEASURES"], [(s.name, s.title) for s in found])


def _cpus(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:  # noqa: ARG001
    if value is None:
        return ()
    try:
        cpus = tuple(int(cpu) for cpu in value.split(","))
    except ValueError:
        raise click.BadParameter("give numbers, separated by commas: 0,1") from None
    usable = os.sched_getaffinity(0)
    for cpu in cpus:
        if cpu not in usable:
            there = ",".join(map(str, sorted(usable)))
            raise click.BadParameter(f"this process may not use CPU {cpu}; it may use {there}")
        if cpus.count(cpu) > 1:
            raise click.BadParameter(f"CPU {cpu} is named twice")
    return cpus


def _at(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:  # noqa: ARG001
    wanted: dict[str, list[str]] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter("give a parameter and its value: bytes=64")
        wanted.setdefault(key, []).append(text)
    return wanted


@bench.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--repetitions", type=click.IntRange(1, 1000), default=7, show_default=True, help="Per point.")
@click.option(
    "--scale",
    type=FiniteFloat(0.01, 100),
    default=1.0,
    show_default=True,
    help="Length of one repetition.",
)
@click.option("--quick", is_flag=True, help="Short for --repetitions 3 --scale 0.1.")
@click.option("--cpus", callback=_cpus, metavar="LIST", help="CPUs to use.  [default: all that it may]")
@click.option("--realtime", is_flag=True, help="Keep other programs off the CPUs while timing (root).")
@click.option("--full", is_flag=True, help="All points, where a scenario has a short set by default.")
@click.option(
    "--at",
    callback=_at,
    multiple=True,
    metavar="KEY=VALUE",
    help="Only these of all points. The same key again: that value, too; KEY=: those without it.",
)
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="What VMs run on; auto: KVM if it can run them.",
)
@click.option("--verbose", "-v", is_flag=True, help="Say on stderr what is measured, a line each.")
@output_option("--output", help="Keep all samples there, for compare and report.")
@output_option("--report", "page", help="Write the HTML report, too.")
@json_option
def run(
    names: tuple[str, ...],
    repetitions: int,
    scale: float,
    quick: bool,
    cpus: tuple[int, ...],
    realtime: bool,
    full: bool,
    at: dict[str, list[str]],
    accel: Literal["auto", "kvm", "tcg"],
    verbose: bool,
    output: Path | None,
    page: Path | None,
    as_json: bool,
) -> None:
    """Run the scenarios NAME, or `all`.

    \b
    Examples:
      vpt bench run switch-copy
      vpt bench run all --quick --report all.html
      vpt bench run vhost-user --at path=guest-guest --at ring=split --at bytes=64
    """
    from vpt.bench.registry import find
    from vpt.bench.registry import names as all_names
    from vpt.bench.scenario import Settings

    scenarios = [find(name) for name in (all_names() if "all" in names else names)]
    if quick:
        repetitions, scale = 3, 0.1
    settings = Settings(repetitions, scale, cpus, realtime, full, accel, at)
    result = _run(scenarios, settings, verbose)
    if output:
        from vpt.bench.result import save

        with writing(output):
            save(result, output)
    if page:
        from vpt.bench.report import page as render

        with writing(page):
            page.write_text(render(result))
    if as_json:
        click.echo(result.model_dump_json(by_alias=True, indent=2))
    else:
        for scenario in result.scenarios:
            _print_scenario(scenario)
    if failed := sum(scenario.failed for scenario in result.scenarios):
        raise VptError(
            f"{failed} of what was asked for could not be measured",
            hint="NOT MEASURED, in the notes, says why",
        )


def _run(scenarios: list[Scenario], settings: Settings, verbose: bool) -> Result:
    from vpt.bench.runner import run as run_all

    with stoppable(), _progress(verbose) as progress:
        return run_all(scenarios, settings, progress)


@contextmanager
def _progress(verbose: bool) -> Iterator[Progress | None]:
    """Lines, or a bar on a terminal, or nothing in a pipe; drawn between repetitions, never during one."""
    if verbose:
        yield lambda done, total, what: click.echo(f"[{done + 1}/{total}] {what}", err=True)
        return
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("")

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, refresh=True)

        yield show


def _print_scenario(scenario: ScenarioResult) -> None:
    from vpt.bench.numbers import engineering

    click.echo(f"{scenario.name}: {scenario.title}")
    if scenario.provenance:
        click.echo(", ".join(f"{key} {value}" for key, value in scenario.provenance.items()))
    rows = []
    for point, variant, metric, summary in scenario.rows():
        ratio = scenario.ratio(point, variant, metric.name)
        rows.append(
            (
                point.label,
                variant.name,
                metric.title or metric.name,
                engineering(summary.median),
                f"{engineering(summary.low)}..{engineering(summary.high)}",
                metric.unit,
                f"{ratio.median:.3g}" if ratio else "",
            )
        )
    against = f">OVER {scenario.reference.upper()}" if scenario.reference else ""
    print_table(["AT", "WHAT", "METRIC", ">MEDIAN", ">MIDDLE HALF", "UNIT", against], rows)
    for note in scenario.notes:
        click.echo(note)
    click.echo()


@bench.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option("--all", "everything", is_flag=True, help="Show what did not change, too.")
@click.option(
    "--fail-on",
    type=click.Choice(["nothing", "count", "any"]),
    default="nothing",
    show_default=True,
    help="Exit with 1 if a count, or anything, got worse, or is not in AFTER.",
)
@json_option
def compare(before: Path, after: Path, everything: bool, fail_on: str, as_json: bool) -> int:
    """Compare two result files: what changed by more than its spread.

    Undecided is what seems to have changed, but has fewer than 7 samples on a side and varies; of a count,
    if it did not more than double or halve.

    \b
    Example:
      vpt bench compare before.json after.json --fail-on count
    """
    from vpt.bench.compare import compare as changes
    from vpt.bench.compare import differences, only_in
    from vpt.bench.result import load
    from vpt.bench.stats import LEAST_SAMPLES

    old, new = load(before), load(after)
    found = list(changes(old, new))
    apart, missing, fresh = differences(old, new), only_in(old, new), only_in(new, old)
    if as_json:
        changes_json = [c.to_json() for c in found]
        only = {"only_before": missing, "only_after": fresh}
        emit_json("bench-compare", {"machines": apart, "changes": changes_json, **only})
    else:
        for difference in apart:
            click.echo(f"not the same machine: {difference}", err=True)
        for file, lines in ((before, missing), (after, fresh)):
            for line in lines:
                click.echo(f"only in {file}: {line}")
        _print_changes([c for c in found if everything or c.verdict != "same"])
        click.echo(f"{len(found)} compared, {sum(c.verdict == 'same' for c in found)} the same")
        undecided = sum(c.verdict == "undecided" for c in found)
        if undecided:
            click.echo(f"{undecided} undecided, too few samples to tell: --repetitions {LEAST_SAMPLES}")
    if fail_on == "nothing":
        return 0
    judged = [c for c in found if fail_on in ("any", c.metric.kind)]
    worse = any(c.verdict == "worse" for c in judged)
    return 1 if worse or not judged or only_in(old, new, fail_on) else 0


def _print_changes(changes: list[Change]) -> None:
    from vpt.bench.numbers import apart, change

    rows = []
    for c in changes:
        before, after = apart(c.before.median, c.after.median)
        by = change(c.ratio - 1) if c.ratio is not None else ""
        what = c.metric.title or c.metric.name
        rows.append((c.scenario, c.point, c.variant, what, before, after, c.metric.unit, by, c.verdict))
    print_table(["SCENARIO", "AT", "WHAT", "METRIC", ">BEFORE", ">AFTER", "UNIT", ">CHANGE", "VERDICT"], rows)


@bench.command()
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="FILE...")
@output_option("--output", default="report.html", help="The page.")
def report(files: tuple[Path, ...], output: Path) -> None:
    """Make one HTML page of result files: tables and plots, no network needed.

    \b
    Example:
      vpt bench report before.json --output before.html
    """
    from vpt.bench.report import page
    from vpt.bench.result import load

    text = page(*(load(file) for file in files))
    with writing(output):
        output.write_text(text)
    click.echo(f"wrote {output}")


def _cost_options(command: click.decorators.FC) -> click.decorators.FC:
    for name, default, text in reversed(_COSTS):
        option = click.option(
            f"--{name}", type=FiniteFloat(0), metavar="NS", help=f"{text}  [default: {default:g}]"
        )
        command = option(command)
    return command


@bench.command()
@_cost_options
@click.option("--length", type=int, default=512, show_default=True, help="Items that the queue holds.")
@click.option("--kc", type=int, help="Items consumed before a waiting producer is told.  [default: 3/4]")
@click.option("--measure", is_flag=True, help="Measure np, nc, sp and sc on this machine (a second).")
@click.option(
    "--spin", type=FiniteFloat(0), default=50.0, show_default=True, metavar="US", help="For adaptive."
)
@click.option(
    "--sleep", type=FiniteFloat(0), default=50.0, show_default=True, metavar="US", help="For sleep."
)
@click.option(
    "--latency",
    type=FiniteFloat(0, min_open=True),
    metavar="US",
    help="Advise: average latency that is acceptable.",
)
@click.option(
    "--cpu",
    type=FiniteFloat(0, 100, min_open=True),
    metavar="PERCENT",
    help="Advise: share of a core for the side that waits.",
)
@output_option("--plot", help="Draw it along Wp: .svg; .png and .pdf by matplotlib.")
@json_option
def model(
    length: int,
    kc: int | None,
    measure: bool,
    spin: float,
    sleep: float,
    latency: float | None,
    cpu: float | None,
    plot: Path | None,
    as_json: bool,
    **given: float | None,
) -> None:
    """What each notification policy does with given or measured costs, and which one to take.

    Times without a unit are nanoseconds, but spin, sleep and latency are microseconds. Costs not given are
    those that the model's authors measured on a virtual machine.

    \b
    Examples:
      vpt bench model --wp 2481
      vpt bench model --wp 300 --wc 100 --measure --latency 30 --cpu 50
      vpt bench model --plot curves.svg
    """
    from vpt.bench.advice import advise
    from vpt.bench.curves import charts, save, what_to_expect
    from vpt.bench.model import Kind, Policy, predict

    costs = _costs(given, length, kc, measure)
    policies = [
        Policy(Kind.NOTIFY),
        Policy(Kind.SLEEP, sleep=1000 * sleep),
        Policy(Kind.ADAPTIVE, spin=1000 * spin),
        Policy(Kind.POLL),
    ]
    rows = [predict(costs, policy) for policy in policies]
    advice = None
    if latency is not None or cpu is not None:
        any_latency, any_cpu = math.inf, 1.0
        advice = advise(
            costs,
            any_latency if latency is None else 1000 * latency,
            any_cpu if cpu is None else cpu / 100,
            policies,
        )
    if plot:
        save(charts(costs, policies), plot)
    if as_json:
        _model_json(costs, rows, advice)
        return
    click.echo(
        f"Wp {costs.wp:g}  Wc {costs.wc:g}  Np {costs.np:.0f}  Nc {costs.nc:.0f}  Sp {costs.sp:.0f}  "
        f"Sc {costs.sc:.0f} ns, queue of {costs.length}, kC {costs.wake_after}"
    )
    click.echo()
    _print_predictions(rows)
    click.echo("\nAlong Wp, notify:")
    for line in what_to_expect(costs):
        click.echo(f"  {line}")
    if advice:
        click.echo(f"\nUse: {advice.choice.policy} ({advice.why})")
        _print_predictions([advice.choice])


def _costs(given: dict[str, float | None], length: int, kc: int | None, measure: bool) -> Costs:
    """Given ones first, then measured ones if asked for, then the published ones."""
    from dataclasses import replace

    from vpt.bench.model import Costs

    def filled(costs: Costs) -> Costs:
        return replace(costs, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    values = {name: default for name, default, _ in _COSTS}
    costs = filled(Costs(**values, length=length, kc=kc))
    if not measure:
        return costs
    from vpt.bench.measure import Threads, measure_costs

    return filled(measure_costs(Threads(), costs))


def _print_predictions(predictions: list[Prediction]) -> None:
    from vpt.bench.numbers import engineering

    print_table(
        [
            "POLICY",
            "REGIME",
            ">ITEMS/S",
            ">BATCH",
            ">KICKS/ITEM",
            ">INTR/ITEM",
            ">LATENCY US",
            ">WORST US",
            ">CPU",
        ],
        [
            (
                str(p.policy),
                str(p.regime.value),
                engineering(p.rate),
                engineering(p.batch) if p.batch != float("inf") else "-",
                engineering(p.kicks),
                engineering(p.interrupts),
                engineering(p.latency / 1000),
                engineering(p.latency_worst / 1000),
                f"{p.cpu_waiter:.0%}",
            )
            for p in predictions
        ],
    )


def _model_json(costs: Costs, predictions: list[Prediction], advice: Advice | None) -> None:
    from dataclasses import asdict

    emit_json(
        "bench-model",
        {
            "costs": asdict(costs),
            "predictions": [p.to_json() for p in predictions],
            "advice": advice and {"met": advice.met, "why": advice.why, "choice": advice.choice.to_json()},
        },
    )
