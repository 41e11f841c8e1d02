# SPDX-License-Identifier: BSD-2-Clause
"""What tests of several folders use: `from support.apps import AppPeer`."""
