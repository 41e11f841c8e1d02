# SPDX-License-Identifier: BSD-2-Clause
"""One file per protocol that carries a port's memory and event fds to its peer."""
