"""Who may import whom: the imports of jaxnas/ hold this table."""

import ast
import graphlib
from pathlib import Path

import pytest

import jaxnas

PACKAGE = Path(jaxnas.__file__).parent

ROOMS = {  # ground floor first; a room is a module or a package
    "": "",  # jaxnas/__init__.py
    "base": "",
    "encoding": "base",
    "checks": "base",
    "draws": "base",
    "incumbents": "base",
    "metrics": "",
    "pareto": "",
    "nn": "base checks",
    "tasks": "base metrics",
    "training": "base",
    "data": "base",
    "checkpoint": "base",
    "files": "base",
    "spaces": "base draws encoding nn",
    "search": "base checkpoint",
    "benchmarks": "base",
    "converters": "base benchmarks spaces",
    "targets": "base checks",
    "generation": "base checks encoding",
    "surrogates": "base checks encoding nn targets training",
    "generators": "base checks draws encoding nn targets tasks training",
    "parallel": "base",
    "evaluators": "base benchmarks encoding metrics training tasks data parallel",
    # search is for `incumbent`
    "strategies": "base checks draws encoding generation metrics pareto search"
    " training",
    "importance": "base encoding",
    "plots": "base encoding importance",
    "runs": "base checkpoint files",
    "progress": "",
    "cli": "base progress runs search",
}

MEMBERS_APART = ("spaces", "surrogates", "generators", "evaluators", "strategies")
"""Rooms that never meet; what their `__init__` imports are their members."""


def module_name(path: Path) -> str:
    """Says `nn.ops`, `nn` for its `__init__`, and nothing for jaxnas itself."""
    return (
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        .removesuffix("__init__")
        .rstrip(".")
    )


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(source: str) -> set[str]:
    """Returns the modules of jaxnas that a file imports anywhere, without `jaxnas.`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "expected absolute imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names.append(str(node.module))
        else:
            continue
        found |= {name for name in names if name.partition(".")[0] == "jaxnas"}
    names = {name.removeprefix("jaxnas").removeprefix(".") for name in found}
    return {name for name in names if name in MODULES} - {""}


IMPORTS = {name: imports_of(path.read_text()) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_imports_are_found():
    source = """
import jax, jaxnas.base
from jaxnas import cli, base
from jaxnas.nn import ops as operations
def f():
    from jaxnas.checkpoint import Checkpoints
    import os.path
"""
    expected = {"base", "cli", "nn", "nn.ops", "checkpoint"}
    assert imports_of(source) == expected
    assert {"search", "nn.ops", "strategies.random_search"} <= set(MODULES)
    assert "base" in IMPORTS["search"]


def test_rooms_go_upwards():
    order = list(ROOMS)
    for name, below in ROOMS.items():
        assert set(below.split()) <= set(order[: order.index(name)])


def test_members_never_meet_in_the_table():
    for name in MEMBERS_APART:
        assert not set(ROOMS[name].split()) & set(MEMBERS_APART)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_rooms_below(module):
    allowed = {room(module), *ROOMS[room(module)].split()}
    rooms = {room(name) for name in IMPORTS[module]}
    assert rooms <= allowed, f"{module} imports {rooms - allowed}"


def test_imports_make_no_cycle():
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError


def test_members_of_a_room_do_not_import_each_other():
    for name in set(MEMBERS_APART) & set(MODULES):
        registered = {member for member in IMPORTS[name] if room(member) == name}
        # What others are made of.
        registered -= {"spaces.categorical", "strategies.differentiable"}
        for module in MODULES:
            if room(module) == name and module != name:
                siblings = IMPORTS[module] & registered
                assert not siblings, f"{module} imports {siblings}"
