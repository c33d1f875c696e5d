# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The shape of the package: imports point down, nobody imports in a circle, and no file is too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reidfast"

# Lower numbers are imported by higher ones; folders of one number do not import each other, but for those listed.
LAYERS = {
    "version": 0,
    "_arrays": 0,
    "_shards": 0,
    "_files": 0,
    "ops": 1,
    "evaluation": 2,
    "compat": 3,
    "testing": 3,
    "nn": 3,
    "losses": 4,
    "data": 4,
    "models": 4,
    "engine": 5,
    "report": 6,
    "cli": 7,
    "__main__": 8,
}
BESIDE = {("models", "losses"), ("models", "data")}

# Files with more lines than this, and how many they may have; the aim is an empty table.
LONGEST = 500
LONGER = {
    "csrc/cuda/rerank.cu": 523,
    "reidfast/ops/triton/memory.py": 551,
    "reidfast/ops/triton/ranking.py": 565,
    "studies/npsm.py": 517,
    "studies/video.py": 698,
    "tools/gpu_check.py": 710,
}


def modules() -> dict[str, Path]:
    """Path of every module, by its dotted name."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in ast.unparse(test)


def _statements(body: list[ast.stmt], inside_functions: bool) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, and on request those in functions; none for type checkers."""
    for node in body:
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from _statements(node.orelse, inside_functions)
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside_functions:
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, name, []), inside_functions)
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body, inside_functions)


def imports(name: str, *, inside_functions: bool) -> set[str]:
    """Modules of the package that a module imports."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    names = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")).body, inside_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                # `from package import name`: the submodule where there is one, unless the package itself defines it
                names.add(inner if inner in MODULES and not _defines(source, alias.name) else source)
    return names & set(MODULES) - {name}


def _defines(package: str, name: str) -> bool:
    """Whether a package's own file imports or defines ``name``, a function of which may share a submodule's name."""
    if package not in MODULES:
        return False
    for node in ast.parse(MODULES[package].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == f"{package}.{name}":
            return any((alias.asname or alias.name) == name for alias in node.names)
    return False


def folder(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_imports_point_down():
    """Also those inside functions: a late import upward is an import upward."""
    wrong = []
    for name in MODULES:
        for other in imports(name, inside_functions=True):
            pair = folder(name), folder(other)
            if not all(pair) or pair[0] == pair[1]:
                continue
            assert set(pair) <= set(LAYERS), f"give {pair} a layer in tests/test_structure.py"
            if LAYERS[pair[0]] <= LAYERS[pair[1]] and pair not in BESIDE:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circle():
    """Tarjan's strongly connected components of what is imported when modules are imported."""
    graph = {name: sorted(imports(name, inside_functions=False)) for name in MODULES}
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                circles.append(" -> ".join(component))

    for name in graph:
        if name not in number:
            visit(name)
    assert not circles, "\n".join(circles)


def test_only_one_module_of_evaluation_names_compiled_ops():
    naming = [
        name
        for name, path in MODULES.items()
        if name.startswith("reidfast.evaluation") and "torch.ops." in path.read_text(encoding="utf-8")
    ]
    assert naming == ["reidfast.evaluation._backends.compiled"]


@pytest.mark.parametrize("top", ["reidfast", "csrc", "benchmarks", "studies", "tools"])
def test_no_file_is_too_long(top):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for suffix in ("py", "cpp", "h", "cu", "cuh", "pyx")
        for path in (ROOT / top).rglob(f"*.{suffix}")
    }
    allowed = {name: LONGER.get(name, LONGEST) for name in lengths}
    too_long = {name: n for name, n in lengths.items() if n > allowed[name]}
    assert not too_long, too_long
