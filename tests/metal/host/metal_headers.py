"""Writes Objective-C's Metal/Metal.h from metal-cpp, Apple's C++ headers for the same classes.

metal-cpp (Apache-2.0, inside the mlx-metal wheel) sends an Objective-C message in the body of every inline method, so each
method's selector and types can be read from it. Methods with types that our host code has no use for (ray tracing,
reflection out-parameters) are left out and counted; using one is then a compile error, never a silent mistake.
"""

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

FOUNDATION_CLASSES = (
    "String Error Array Dictionary URL Data Set Bundle Number Value Object Date ProcessInfo".split()
)
# C++ spelling -> Objective-C spelling.
SCALARS = {
    "bool": "BOOL",
    "NS::UInteger": "NSUInteger",
    "UInteger": "NSUInteger",
    "NS::Integer": "NSInteger",
    "NS::TimeInterval": "double",
    "Timestamp": "uint64_t",
    "GPUAddress": "uint64_t",
} | {
    name: name
    for name in (
        "void float double int uint8_t uint16_t uint32_t uint64_t int64_t CFTimeInterval kern_return_t "
        "task_id_token_t mach_port_t IOSurfaceRef dispatch_data_t dispatch_queue_t"
    ).split()
}
# Plain structs, with the fields that metal-cpp gives them.
STRUCTS = {
    "Origin": "NSUInteger x, y, z;",
    "Size": "NSUInteger width, height, depth;",
    "Region": "MTLOrigin origin; MTLSize size;",
    "SamplePosition": "float x, y;",
    "SizeAndAlign": "NSUInteger size, align;",
    "ResourceID": "uint64_t _impl;",
}
PRELUDE = """\
// Generated from metal-cpp by metal_headers.py: do not edit.
#pragma once
#import <Foundation/Foundation.h>
#include <dispatch/dispatch.h>
typedef double CFTimeInterval;
typedef struct __IOSurface* IOSurfaceRef;
#ifdef __APPLE__
#include <mach/mach.h>
#else
typedef int kern_return_t;
typedef unsigned mach_port_t;
typedef unsigned task_id_token_t;
#endif
"""
EPILOGUE = """\
static inline MTLSize MTLSizeMake(NSUInteger width, NSUInteger height, NSUInteger depth) {
  MTLSize size;
  size.width = width;
  size.height = height;
  size.depth = depth;
  return size;
}
#ifdef __cplusplus
extern "C" {
#endif
id<MTLDevice> MTLCreateSystemDefaultDevice(void) __attribute__((ns_returns_retained));
NSArray* MTLCopyAllDevices(void) __attribute__((ns_returns_retained));
#ifdef __cplusplus
}
#endif
"""


def objc_name(namespace: str, name: str) -> str:
    return ("MTL4" if namespace == "MTL4" else "MTL") + name


def split_parameters(text: str) -> list[str]:
    """Splits at commas outside brackets."""
    parts, depth, current = [], 0, ""
    for ch in text:
        if ch == "," and depth == 0:
            parts.append(current)
            current = ""
            continue
        depth += (ch in "(<") - (ch in ")>")
        current += ch
    return [p.strip() for p in [*parts, current] if p.strip()]


@dataclass
class Api:
    """What metal-cpp declares."""

    classes: set[str]
    protocols: set[str]
    selectors: dict[str, str]
    enums: list[tuple[str, str, str, str, list[str]]] = field(default_factory=list)
    enum_names: set[tuple[str, str]] = field(default_factory=set)
    bases: dict[tuple[str, str], str | None] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)
    extra_protocols: set[str] = field(default_factory=set)
    methods: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    skipped: list[str] = field(default_factory=list)

    def convert(self, text: str, namespace: str) -> str | None:
        """The Objective-C type of a C++ one; None where this header has no word for it."""
        text = re.sub(r"\bclass\s+", "", text.strip())
        if "std::function" in text or re.search(r"Function&|HandlerFunction", text):
            return None
        const = "const " if text.startswith("const ") else ""
        text = re.sub(r"^const\s+|\s+const$", "", text).strip()
        if text in SCALARS:
            return SCALARS[text]
        if text == "void*" or text == "void *":
            return f"{const}void*"
        match = re.match(r"^(?:(NS|MTL|MTL4)::)?(\w+)\s*((?:\*\s*(?:const)?\s*){0,2})$", text)
        if not match:
            return None
        space = match.group(1) or namespace
        name = match.group(2)
        stars = match.group(3).count("*")
        if space == "NS":
            return self._foundation(name, stars)
        full = objc_name(space, name)
        pointer = " *" * stars
        if (space, name) in self.enum_names or name in STRUCTS:
            return (full if name not in STRUCTS else f"MTL{name}") + pointer
        if full in self.protocols or ((space, name) in self.bases and full not in self.classes):
            if full not in self.protocols:
                self.extra_protocols.add(full)
            return f"id<{full}>" + (" *" if stars == 2 else "")
        if full in self.classes:
            return f"{full} *" + (" *" if stars == 2 else "")
        if name in self.blocks:
            return self.blocks[name]
        return SCALARS[name] + pointer if name in SCALARS else None

    @staticmethod
    def _foundation(name: str, stars: int) -> str | None:
        if name == "Object":
            return "id" if stars == 1 else None
        if name in FOUNDATION_CLASSES:
            return f"NS{name} " + "*" * stars if stars else None
        if name in ("Range", "UInteger"):
            return f"NS{name}" + " *" * stars
        return None


def read_api(folder: Path) -> Api:
    """Reads metal-cpp's Metal folder."""
    bridge = (folder / "MTLHeaderBridge.hpp").read_text()
    api = Api(
        classes=set(re.findall(r"_MTL_PRIVATE_DEF_CLS\((\w+)\)", bridge)),
        protocols=set(re.findall(r"_MTL_PRIVATE_DEF_PRO\((\w+)\)", bridge)),
        selectors=dict(re.findall(r'_MTL_PRIVATE_DEF_SEL\((\w+),\s*"([^"]+)"\)', bridge)),
    )
    texts = []
    for path in sorted(folder.glob("*.hpp")):
        if "HeaderBridge" not in path.name:
            namespace = "MTL4" if path.name.startswith("MTL4") else "MTL"
            texts.append((namespace, re.sub(r"//[^\n]*", "", path.read_text())))
    for namespace, text in texts:
        read_types(api, namespace, text)
    for namespace, text in texts:
        read_blocks(api, namespace, text)
    for _, text in texts:
        read_methods(api, text)
    return api


def read_types(api: Api, namespace: str, text: str) -> None:
    for match in re.finditer(r"_MTL_(ENUM|OPTIONS)\(\s*([\w:]+),\s*(\w+)\)\s*\{(.*?)\};", text, re.S):
        kind, integer, name, body = match.groups()
        items = [item.strip() for item in body.split(",") if item.strip()]
        api.enums.append((kind, integer, namespace, name, items))
        api.enum_names.add((namespace, name))
    pattern = r"^class (\w+) : public NS::(?:Referencing|Copying|SecureCoding)<\s*(\w+)(?:,\s*([\w:]+))?>"
    for match in re.finditer(pattern, text, re.M):
        api.bases[(namespace, match.group(1))] = match.group(3)


def read_blocks(api: Api, namespace: str, text: str) -> None:
    for match in re.finditer(r"using (\w+)\s*=\s*(\w+|void) \(\^\)\(([^)]*)\);", text):
        types = []
        for parameter in split_parameters(match.group(3)):
            bare = parameter if parameter.endswith("*") else re.sub(r"(?<=[\*\s])\s*[a-z]\w*$", "", parameter)
            types.append(api.convert(bare, namespace) or "void*")
        api.blocks[match.group(1)] = f"{match.group(2)} (^)({', '.join(types) or 'void'})"


def parameter_type(api: Api, text: str, namespace: str) -> tuple[str, str] | None:
    """Type and name of one parameter, blocks and arrays included."""
    block = re.match(r"(?:const )?(\w+) \(\^\s*(\w+)\)\((.*)\)$", text, re.S)
    if block:
        types = []
        for part in split_parameters(block.group(3)):
            types.append(api.convert(part if part.endswith("*") else re.sub(r"\b[a-z]\w*$", "", part), namespace))
        return None if None in types else (f"{block.group(1)} (^)({', '.join(types)})", block.group(2))
    match = re.match(r"(.*?)(\w+)(\[\])?$", text, re.S)
    if not match:
        return None
    converted = api.convert(match.group(1), namespace)
    if converted is None:
        return None
    if match.group(3):
        is_object = converted.startswith("id<") or converted.endswith("*")
        converted = f"const {converted} " + ("__unsafe_unretained *" if is_object else "*")
    return converted, match.group(2)


def read_methods(api: Api, text: str) -> None:
    method = (
        r"_MTL_INLINE\s+([\w:<>\s\*&]+?)\s*(MTL4?)::(\w+)::(\w+)\(([^)]*(?:\([^)]*\)[^)]*)*)\)\s*(?:const)?\s*\{(.*?)^\}"
    )
    send = r"(?:sendMessage|sendMessageSafe)<.*?>\((this|_MTL_PRIVATE_CLS\(\w+\)|\w+),\s*_MTL_PRIVATE_SEL\((\w+)\)"
    for match in re.finditer(method, text, re.S | re.M):
        returned, namespace, owner, name, parameters, body = match.groups()
        sent = re.search(send, body, re.S)
        if not sent:
            continue
        selector = api.selectors.get(sent.group(2))
        types = [parameter_type(api, p, namespace) for p in split_parameters(parameters)]
        result = api.convert(returned, namespace)
        words = selector.split(":")[:-1] if selector and selector.endswith(":") else []
        if selector is None or result is None or None in types or len(words) != len(types):
            api.skipped.append(f"{owner}::{name}({parameters})")
            continue
        words = [f"{w}:({t}){n}" for w, (t, n) in zip(words, types, strict=True)]
        sign = "+" if "PRIVATE_CLS" in sent.group(1) else "-"
        line = f"{sign} ({result}){' '.join(words) or selector};"
        known = api.methods[objc_name(namespace, owner)]
        if line.split(")", 1)[1] not in [k.split(")", 1)[1] for k in known]:
            known.append(line)


def enum_lines(api: Api) -> list[str]:
    lines = []
    for kind, integer, namespace, name, items in api.enums:
        integer = integer.replace("NS::", "NS")
        names = [re.match(r"\w+", item).group() for item in items]
        word = re.compile(r"\b(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + r")\b")
        values = [
            word.sub(lambda m, s=namespace: objc_name(s, m.group(1)), re.sub(r"\bNS::(\w+)", r"NS\1", item))
            for item in items
        ]
        lines.append(f"typedef NS_{kind}({integer}, {objc_name(namespace, name)}) {{ {', '.join(values)} }};")
    return lines


def interface_lines(api: Api) -> list[str]:
    lines: list[str] = []
    protocols = api.protocols | api.extra_protocols
    done: set[str] = set()

    def parent_of(name: str) -> str | None:
        key = ("MTL4", name[4:]) if name.startswith("MTL4") else ("MTL", name[3:])
        base = api.bases.get(key)
        if not base or base.startswith("NS::"):
            return None
        parts = base.split("::")
        return objc_name(parts[0] if len(parts) > 1 else key[0], parts[-1])

    def emit(name: str) -> None:
        if name in done:
            return
        done.add(name)
        parent = parent_of(name)
        if parent:
            emit(parent)
        if name in protocols:
            lines.append(f"@protocol {name} <{parent if parent in protocols else 'NSObject'}>")
            lines.extend(api.methods[name])
        else:
            lines.append(f"@interface {name} : {parent if parent and parent not in protocols else 'NSObject'}")
            lines.extend(m for m in api.methods[name] if not re.match(r"[-+] \([^)]*\)(alloc|init);", m))
        lines.append("@end")

    for name in sorted(protocols | api.classes):
        emit(name)
    return lines


def write_metal_header(metal_cpp: Path, out: Path) -> Api:
    """Writes out/Metal/Metal.h from the folder that holds metal-cpp's Metal/ and Foundation/."""
    api = read_api(metal_cpp / "Metal")
    lines = [f"@protocol {p};" for p in sorted(api.protocols | api.extra_protocols)]
    lines += [f"@class {c};" for c in sorted(api.classes)]
    lines += enum_lines(api)
    lines += [f"typedef struct {{ {fields} }} MTL{name};" for name, fields in STRUCTS.items()]
    lines += interface_lines(api)
    target = out / "Metal" / "Metal.h"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(PRELUDE + "\n".join(lines) + "\n" + EPILOGUE)
    return api


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metal_cpp", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    api = write_metal_header(options.metal_cpp, options.out)
    print(
        f"{len(api.protocols)} protocols, {len(api.classes)} classes, {sum(map(len, api.methods.values()))} methods, "
        f"{len(api.enums)} enums; {len(api.skipped)} methods left out"
    )


if __name__ == "__main__":
    main()
