# SPDX-License-Identifier: BSD-2-Clause
"""One file per scenario; what begins with an underscore is shared between them."""
