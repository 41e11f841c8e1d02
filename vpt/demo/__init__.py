# SPDX-License-Identifier: BSD-2-Clause
"""`vpt demo`: two real VMs exchange packets over vpt, and a table says what that took."""

from vpt.demo._report import FlowReport, PortReport, Report
from vpt.demo._run import Options, run

__all__ = ["FlowReport", "Options", "PortReport", "Report", "run"]
