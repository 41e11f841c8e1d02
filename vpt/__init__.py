# SPDX-License-Identifier: BSD-2-Clause
"""vpt (virtual passthrough): fast packet I/O for virtual machines.

This package is the control plane and the tooling. `vpt.dataplane` is the only part that loads the C
extension, and nothing heavy is imported here: `vpt --help` has to answer at once.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
