# SPDX-License-Identifier: BSD-2-Clause
"""python -m vpt.cli is vpt."""

import sys

from vpt.cli import main

sys.exit(main())
