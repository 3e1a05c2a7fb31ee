"""Metal Shading Language to C++ that clang compiles with shim/msl.h, by rewriting tokens.

What changes, and nothing else:
  [[attributes]]        taken out; those of kernel parameters become the kernel's reflection table
  kernel functions      registered with the rig under their name, after their body
  threadgroup T x[n];   storage of the running threadgroup
  device, constant, threadgroup, thread    macros: clang address spaces, or nothing
  float4(...)           metal::shim::make<float4>(...); static_cast<T> likewise
  1.0                   1.0f; 1.0h becomes half(1.0f): MSL has no double
Line markers stay, so messages of the compiler point into the .metal file.

What is refused, because MSL refuses it or because this way could not tell: see `lint` and
`check_parameters`. The kernels of this project keep to what passes.
"""

import re
from dataclasses import dataclass

from .tokens import SourceError, Token, TokenList, tokenise

VECTORS = {
    base + str(n)
    for base in ("float", "half", "bfloat", "int", "uint", "short", "ushort", "uchar", "ulong")
    for n in (2, 3, 4)
}
SPACES = {
    "device": "MSL_DEVICE",
    "constant": "MSL_CONSTANT",
    "threadgroup": "MSL_THREADGROUP",
    "thread": "MSL_THREAD",
}
SCALARS = set(
    ["void", "bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "float", "half", "bfloat", "size_t", "auto", "int8_t", "uint8_t", "int16_t", "uint16_t", "int32_t", "uint32_t", "int64_t", "uint64_t"]
)
IDENTIFIERS = {
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "threadgroup_position_in_grid",
    "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup",
    "threadgroups_per_grid",
    "threads_per_grid",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "threads_per_simdgroup",
}
FORBIDDEN = {
    "double": "MSL has no double",
    "std": "MSL has metal::, not std::",
    "goto": "MSL has no goto",
    "new": "MSL has no new",
    "delete": "MSL has no delete",
    "try": "MSL has no exceptions",
    "throw": "MSL has no exceptions",
    "virtual": "MSL has no virtual functions",
    "dynamic_cast": "MSL has no dynamic_cast",
    "reinterpret_cast": "use as_type, or a C cast that keeps the address space",
    "vec": "use float4 and its like: casts to dependent vector types are not converted here",
}
INDEX_MAX = 30


@dataclass
class Parameter:
    name: str
    declaration: str
    attributes: list[str]


class Rewriter(TokenList):
    def __init__(self, source: str, own_files: str):
        """`own_files`: files whose path starts with this are the shim's, and not linted."""
        super().__init__(tokenise(source))
        self.own_files = own_files
        self.errors: list[str] = []
        self.attributes: dict[int, list[str]] = {}  # id of the token that stood before [[...]]
        self.insertions: dict[int, list[str]] = {}  # after token index
        self.kernel_bodies: list[tuple[int, int]] = []

    def error(self, token: Token, message: str) -> None:
        self.errors.append(f"{token.file}:{token.line}: error: {message}")

    def run(self) -> str:
        self.take_attributes()
        self.lint()
        self.function_constants()
        self.kernels()
        self.expressions()
        if self.errors:
            raise SourceError("\n".join(self.errors))
        out = []
        for i, token in enumerate(self.tokens):
            out.append(token.text)
            out += self.insertions.get(i, [])
        return '#include "msl.h"\n' + "".join(out)

    def is_ours(self, token: Token) -> bool:
        return not token.file.startswith((self.own_files, "<"))

    # --- attributes ---

    def take_attributes(self) -> None:
        for i, token in enumerate(self.tokens):
            if token.text != "[" or self.text(i + 1) != "[":
                continue
            end = self.closing(i)
            items = re.findall(r"[\w:]+(?:\([^()]*\))?", self.join(i + 2, self.before(end)))
            owner = self.tokens[self.before(i)]
            self.attributes.setdefault(id(owner), []).extend(re.sub(r"\s", "", x) for x in items)
            self.blank(i, end + 1)

    def attributes_in(self, begin: int, end: int) -> list[str]:
        return [a for t in self.tokens[begin:end] for a in self.attributes.get(id(t), [])]

    # --- function constants: constant T name [[function_constant(n)]]; ---

    def function_constants(self) -> None:
        for i, token in enumerate(self.tokens):
            found = [a for a in self.attributes.get(id(token), []) if a.startswith("function_cons")]
            if not found or self.text(self.after(i)) != ";":
                continue
            index = re.fullmatch(r"function_constant\((\w+)\)", found[0])
            begin = i
            while (
                begin > 0
                and self.text(begin - 1) not in (";", "}")
                and (self.tokens[begin - 1].kind != "marker")
            ):
                begin -= 1
            for part in self.tokens[begin:i]:
                if part.text == "constant":
                    part.text = "static"
            end = self.after(i)
            name = index[1] if index else "?"
            self.insertions.setdefault(end, []).append(
                f" MSL_REGISTER_CONSTANT({name}, {token.text})"
            )

    # --- kernels ---

    def kernels(self) -> None:
        i = 0
        while i < len(self.tokens):
            if self.tokens[i].kind == "word" and self.text(i) == "kernel":
                i = self.kernel(i)
            i += 1

    def kernel(self, at: int) -> int:
        """Registers the kernel whose `kernel` keyword is at `at`; the index of its last token."""
        self.tokens[at].text = ""
        opening = at
        while self.text(opening) != "(":
            opening = self.after(opening)
        closing = self.closing(opening)
        name = self.text(self.before(opening))
        if self.text(self.after(at)) != "void":
            self.error(self.tokens[at], f"kernel {name} must return void")
        parameters = self.parameters(opening + 1, closing)
        self.check_parameters(self.tokens[at], name, parameters)
        body = self.after(closing)
        end = self.closing(body)
        self.kernel_bodies.append((body, end))
        limit = [
            a for a in self.attributes_in(at, opening) if a.startswith("max_total_threads_per_")
        ]
        threads = re.search(r"\((.*)\)", limit[0])[1] if limit else "0"  # type: ignore[index]
        table = ", ".join(
            f'{{"{p.attributes[0]}", "{p.name}"}}' for p in parameters if p.attributes
        )
        self.insertions.setdefault(end, []).append(
            f" MSL_REGISTER_KERNEL({name}, {len(parameters)}, {threads}, {table})"
        )
        return end

    def parameters(self, begin: int, end: int) -> list[Parameter]:
        result, depth, first = [], 0, begin
        for i in range(begin, end + 1):
            text = "," if i == end else self.text(i)
            depth += (text in "([{<") - (text in ")]}>") if text else 0
            if text != "," or depth != 0:
                continue
            words = [t.text for t in self.tokens[first:i] if t.kind == "word"]
            if words:
                attributes = self.attributes_in(first, i)
                result.append(Parameter(words[-1], self.join(first, i), attributes))
            first = i + 1
        return result

    def check_parameters(self, token: Token, kernel: str, parameters: list[Parameter]) -> None:
        used: set[str] = set()
        for p in parameters:
            where = f"kernel {kernel}: parameter '{p.name}'"
            if not p.attributes:
                self.error(token, f"{where} has no attribute; buffers need [[buffer(n)]]")
                continue
            attribute = p.attributes[0]
            place = re.fullmatch(r"(buffer|threadgroup)\((\d+)\)", attribute)
            if place is None:
                if attribute not in IDENTIFIERS:
                    self.error(token, f"{where}: unknown attribute [[{attribute}]]")
                continue
            if int(place[2]) > INDEX_MAX:
                self.error(token, f"{where}: {attribute} is over {INDEX_MAX}")
            if attribute in used:
                self.error(token, f"{where}: {attribute} is taken")
            used.add(attribute)
            if not set(p.declaration.split()) & {"device", "constant", "threadgroup"}:
                self.error(token, f"{where} has no address space")

    # --- everything inside statements ---

    def expressions(self) -> None:
        for i, token in enumerate(self.tokens):
            if token.kind == "number":
                token.text = self.number(token.text)
            elif token.kind == "word":
                self.word(i, token)

    @staticmethod
    def number(text: str) -> str:
        if text[:2] in ("0x", "0X") or text[-1] in "fFuUlL":
            return text
        if text[-1] in "hH":
            body = text[:-1] if re.search(r"[.eE]", text) else text[:-1] + ".0"
            return f"half({body}f)"
        return text + "f" if re.search(r"[.eE]", text) else text

    def word(self, i: int, token: Token) -> None:
        following = self.text(self.after(i))
        preceding = self.text(self.before(i))
        if token.text in VECTORS and following == "(" and preceding not in (".", "->"):
            token.text = f"metal::shim::make<{token.text}>"
        elif token.text in VECTORS and preceding == "(" and following == ")":
            after = self.tokens[self.after(self.after(i))]
            if after.kind in ("word", "number") or after.text in "(-":
                self.error(token, f"C cast to {token.text}: write {token.text}(x)")
        elif token.text == "static_cast" and not self.casts_pointer(i):
            token.text = "metal::shim::cast"
        elif token.text == "threadgroup" and self.is_variable(i, preceding):
            self.threadgroup_variable(i)
        elif token.text in SPACES:
            token.text = SPACES[token.text]

    def casts_pointer(self, i: int) -> bool:
        end = i
        while self.text(end) not in ("(", ""):
            end += 1
        return any(self.text(j) in ("*", "&") for j in range(i, end))

    def is_variable(self, i: int, preceding: str) -> bool:
        """Whether `threadgroup` at i begins a declaration statement without * or &."""
        if preceding not in (";", "{", "}"):
            return False
        j = i
        while self.text(j) not in (";", "=", "(", "["):
            if self.text(j) in ("*", "&"):
                return False
            j = self.after(j)
        return self.text(j) in (";", "[")

    def threadgroup_variable(self, i: int) -> None:
        token = self.tokens[i]
        if not any(begin < i < end for begin, end in self.kernel_bodies):
            self.error(token, "threadgroup variables belong into kernel functions")
        end = i
        while self.text(end) != ";":
            end = self.after(end)
        found = re.fullmatch(r"([\w:]+)\s+(\w+)\s*((?:\[[^\]]*\])*)", self.join(i + 1, end))
        if found is None:
            self.error(token, "one threadgroup variable a statement: threadgroup T name[n];")
            return
        self.blank(i + 1, end)
        token.text = "MSL_THREADGROUP_VARIABLE({}, {}, {})".format(*found.groups())

    # --- what MSL would refuse and clang would not ---

    def lint(self) -> None:
        for i, token in enumerate(self.tokens):
            if not token.solid or not self.is_ours(token):
                continue
            if token.kind == "word" and token.text in FORBIDDEN:
                self.error(token, FORBIDDEN[token.text])
            elif token.text == "long" and self.text(self.after(i)) == "long":
                self.error(token, "MSL has no long long: long is 64 bits")
            elif token.text == "[" and self.text(self.before(i)) in ("=", "(", ",", "return"):
                self.error(token, "lambda expressions are not in MSL before Metal 4")
            elif token.text in ("*", "&"):
                self.lint_pointer(i, token)

    def lint_pointer(self, i: int, token: Token) -> None:
        """A declarator `type * name` whose declaration names no address space."""
        before, after = self.tokens[self.before(i)], self.tokens[self.after(i)]
        if before.kind != "word" or after.kind != "word":
            return
        begin = i
        while begin > 0 and self.text(begin - 1) not in (*";{}(),=?:<", "return"):
            begin -= 1
        words = [t.text for t in self.tokens[begin:i] if t.kind == "word"]
        is_type = before.text in SCALARS | VECTORS or before.text == "const"
        if is_type and not set(words) & set(SPACES):
            self.error(token, f"pointer or reference without an address space: {before.text}")


def rewrite(source: str, own_files: str) -> str:
    """C++ of preprocessed Metal `source`. Raises SourceError with every mistake found."""
    return Rewriter(source, own_files).run()
