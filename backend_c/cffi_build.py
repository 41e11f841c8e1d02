# SPDX-License-Identifier: BSD-2-Clause
"""Generate the C source of vpt._vpt from the public headers.

Python sees exactly what the headers say: structures and prototypes of vpt.h and vpt_bench.h (between their
cffi marks) and of abi.h, and their integer constants, whose values the C compiler fills in. Nothing is
written down twice.

Usage: cffi_build.py abi.h vpt.h vpt_bench.h OUTPUT
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

_BEGIN, _END = "/* cffi: begin */", "/* cffi: end */"

# Functions that a header defines inline; cffi wants a prototype.
_INLINE = "int vpt_event_passed(uint32_t at, uint32_t old, uint32_t now, uint32_t n);\n"


def constants(header: str) -> str:
    """Declarations of a header's macros: constants as such, function-like ones as functions of uint32_t."""
    out = [f"#define {name} ..." for name in re.findall(r"^#define (VPT_\w+)[ \t]+[^\s/]", header, re.M)]
    for name, args in re.findall(r"^#define (VPT_\w+)\(([\w, ]+)\)", header, re.M):
        params = ", ".join(f"uint32_t {arg.strip()}" for arg in args.split(","))
        out.append(f"uint32_t {name}({params});")
    return "\n".join(out) + "\n"


def structures(header: str) -> str:
    """The structure definitions of a header. The compiler fills in lengths that cffi can't."""
    found = re.findall(r"^struct \w+ \{\n.*?^\};\n", header, re.M | re.S)
    return re.sub(r"\[[^]\n]*VPT_[^]\n]*\]", "[...]", "".join(found))


def marked(header: str) -> str:
    """What lies between the cffi marks."""
    begin, end = header.index(_BEGIN) + len(_BEGIN), header.index(_END)
    return header[begin:end]


def cdef(abi: str, *api: str) -> str:
    """All that Python gets to see."""
    return "".join(map(constants, (abi, *api))) + structures(abi) + _INLINE + "".join(map(marked, api))


def main(*files: str) -> None:
    *headers, output = files
    ffi = FFI()
    ffi.cdef(cdef(*(Path(header).read_text() for header in headers)))
    ffi.set_source("vpt._vpt", '#include "vpt/vpt_bench.h"\n')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
