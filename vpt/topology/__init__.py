# SPDX-License-Identifier: BSD-2-Clause
"""Switches, ports and machines from a file: reading it, planning what has to be done, doing it, writing one.

wanted = load(text, "lab.yaml", paths.ports)
have = actual(vptd, guests)
check_machines(wanted, guests)
todo = plan(wanted, have)
require_options(todo, given=())
perform(todo, have, Doer(connect, guests))
"""

from vpt.topology._apply import Doer, actual, check_machines, perform, require_options
from vpt.topology._export import as_data, as_yaml, json_schema
from vpt.topology._load import SCHEMA, load
from vpt.topology._plan import Actual, Plan, Step, Wanted
from vpt.topology._vms import plan

__all__ = [
    "SCHEMA",
    "Actual",
    "Doer",
    "Plan",
    "Step",
    "Wanted",
    "actual",
    "as_data",
    "as_yaml",
    "check_machines",
    "json_schema",
    "load",
    "perform",
    "plan",
    "require_options",
]
