# SPDX-License-Identifier: BSD-2-Clause
"""The scenarios there are: the modules of vpt/bench/scenarios, one each."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from vpt.bench import scenarios
from vpt.bench.scenario import Scenario
from vpt.errors import UsageError

__all__ = ["find", "names"]


def names() -> list[str]:
    """Names of all scenarios, without importing them: a module's name with dashes is its scenario's."""
    return sorted(
        m.name.replace("_", "-") for m in pkgutil.iter_modules(scenarios.__path__) if m.name[0] != "_"
    )


def find(name: str) -> Scenario:
    """The scenario of that name. UsageError: there is none."""
    if name not in names():
        raise UsageError(f"no scenario {name!r}", hint=f"one of: {', '.join(names())}")
    scenario = import_module(f"{scenarios.__name__}.{name.replace('-', '_')}").SCENARIO
    if not isinstance(scenario, Scenario) or scenario.name != name:
        raise TypeError(f"scenario {name}: its module's SCENARIO is {scenario!r}")
    return scenario
