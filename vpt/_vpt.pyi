# SPDX-License-Identifier: BSD-2-Clause
# The C extension, generated from vpt.h and abi.h. Only vpt.dataplane imports it.
from typing import Any

ffi: Any
lib: Any
