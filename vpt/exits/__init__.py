# SPDX-License-Identifier: BSD-2-Clause
"""VM exits, measured: sources of counts (one file each under sources/), and the meter that reads them with
care.

target   what a user calls a VM -> handles to ask it by
tier     which kind of KVM this host has
sources  counters, as they stand
meter    differences, rates, verdicts, comparison; pure
session  sampling over time
render   JSON, CSV, Prometheus text, tables
"""

from vpt.exits.meter import Comparison, Delta, Measure, Rate, compare, delta, measure, rate, span
from vpt.exits.model import Identity, Quantity, Recording, Sample, Tier

__all__ = [
    "Comparison",
    "Delta",
    "Identity",
    "Measure",
    "Quantity",
    "Rate",
    "Recording",
    "Sample",
    "Tier",
    "compare",
    "delta",
    "measure",
    "rate",
    "span",
]
