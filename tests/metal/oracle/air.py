"""Makes a kernel that Apple compiled (AIR: LLVM bitcode) into a shared object for the rig.

The bitcode is disassembled and its target replaced; function constants get their values; the air.* functions it calls
are in air_library.cpp; a generated entry hands buffers and thread indices over as the kernel's metadata says.
"""

import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rig.compile import CLANG, RIG, call

HERE = Path(__file__).resolve().parent
DISASSEMBLER = "llvm-dis-19"
TARGETS = {
    "x86_64": (
        "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128",
        "x86_64-pc-linux-gnu",
    ),
    "aarch64": (
        "e-m:e-i8:8:32-i16:16:32-i64:64-i128:128-n32:64-S128-Fn32",
        "aarch64-unknown-linux-gnu",
    ),
}


@dataclass
class Argument:
    kind: str  # buffer, thread_index_in_simdgroup, ...
    index: int  # of a buffer
    name: str
    width: int  # components of an id
    is_optional: bool  # switched by a function constant


def disassemble(bitcode: bytes) -> str:
    done = subprocess.run([DISASSEMBLER, "-", "-o", "-"], input=bitcode, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def arguments_of(ir: str) -> list[Argument]:
    nodes = dict(re.findall(r"^(!\d+) = (?:distinct )?!\{(.*)\}$", ir, re.M))
    kernel = re.search(r"^!air\.kernel = !\{(!\d+)", ir, re.M)
    assert kernel, "no kernel in this bitcode"
    result = []
    for node in nodes[nodes[kernel[1]].split(", ")[2]].split(", "):
        text = nodes[node]
        kinds = re.findall(r'!"air\.(\w+)"', text)
        optional = "function_constant" in kinds
        kind = next(k for k in kinds if k != "function_constant")
        index = re.search(r'!"air.location_index", i32 (\d+)', text)
        type_name = re.search(r'!"air.arg_type_name", !"(\w+)"', text)
        name = re.search(r'!"air.arg_name", !"([^"]*)"', text)
        width = re.search(r"(\d)$", type_name[1]) if type_name and kind != "buffer" else None
        result.append(
            Argument(
                kind, int(index[1]) if index else -1, name[1] if name else "",
                int(width[1]) if width else 1, optional,
            )
        )  # fmt: skip
    return result


def retarget(ir: str, constants: Mapping[int, int]) -> str:
    """The same code for this machine, with function constants at their values."""
    layout, triple = TARGETS[platform.machine()]
    ir = re.sub(r"^target (datalayout|triple) = .*\n", "", ir, flags=re.M)
    ir = re.sub(r" dereferenceable\(\d+\)", "", ir)  # of arguments that a constant switches off
    ir = ir.replace(' section "air.static_init"', "")

    def set_constant(found: re.Match[str]) -> str:
        value = constants[int(found[2])]
        return f"{found[1]} = internal addrspace(2) global {found[3]} {value}"

    pattern = r"^(@\S*MTL_FC_INIT_(\d+)_\w+) = .* constant (\S+) undef.*$"
    ir = re.sub(pattern, set_constant, ir, flags=re.M)
    return f'target datalayout = "{layout}"\ntarget triple = "{triple}"\n{ir}'


def entry_source(name: str, arguments: list[Argument]) -> str:
    types, values, table = [], [], []
    for a in arguments:
        if a.kind == "buffer":
            types.append("void*")
            values.append(f"bindings->buffers[{a.index}]")
            kind = "optional" if a.is_optional else "buffer"
            table.append(f'{{"{kind}({a.index})", "{a.name}"}}')
            continue
        one = a.kind.endswith(("simdgroup", "threadgroup")) and not a.kind.startswith(
            "thread_position"
        )
        scalar = f"ids->{a.kind}" if one and "index" in a.kind else f"ids->{a.kind}.x"
        all_values = ", ".join(f"ids->{a.kind}.{axis}" for axis in "xyz"[: a.width])
        types.append("unsigned" if a.width == 1 else f"unsigned{a.width}")
        values.append(scalar if a.width == 1 else f"unsigned{a.width}{{{all_values}}}")
        table.append(f'{{"{a.kind}", "{a.name}"}}')
    return f"""#include "kernel_abi.h"
typedef unsigned unsigned2 __attribute__((ext_vector_type(2)));
typedef unsigned unsigned3 __attribute__((ext_vector_type(3)));
extern "C" void air_kernel({", ".join(types)}) __asm__("{name}");
static void entry(const gpu_bindings* bindings, const gpu_ids* ids) {{
  air_kernel({", ".join(values)});
}}
static constexpr gpu_param_entry params[] = {{{", ".join(table)}}};
__attribute__((constructor)) static void register_kernel() {{
  gpu_register_kernel("{name}", entry, params, {len(arguments)}, 0);
}}
"""


def build(bitcode: bytes, name: str, constants: Mapping[int, int], output: Path) -> None:
    ir = disassemble(bitcode)
    with tempfile.TemporaryDirectory() as folder:
        code, entry = Path(folder) / "kernel.ll", Path(folder) / "entry.cpp"
        code.write_text(retarget(ir, constants))
        entry.write_text(entry_source(name, arguments_of(ir)))
        machine = ["-mavx2", "-mfma"] if platform.machine() == "x86_64" else []
        common = [
            CLANG,
            "-O2",
            "-fPIC",
            "-ffp-contract=off",
            *machine,
            "-Wno-override-module",
            "-c",
        ]
        call(*common, "-x", "ir", code, "-o", f"{folder}/kernel.o")
        for source in (entry, HERE / "air_library.cpp"):
            call(*common, "-std=c++17", f"-I{RIG}", source, "-o", f"{folder}/{source.stem}.o")
        objects = [f"{folder}/{stem}.o" for stem in ("kernel", "entry", "air_library")]
        call(CLANG, "-shared", "-Wl,-z,lazy", *objects, "-o", output, "-lm")
