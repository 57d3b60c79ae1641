"""The imports run one way: along the order of rooms that CONTRIBUTING.md draws, and never in a circle.

Every import counts: at the top of a file, inside a function, and for type checking alone.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "pqm_kernels": ROOT / "kernels" / "pqm_kernels",
    "pqm_fast": ROOT / "pqm_fast",
    "pqm_benchmarks": ROOT / "benchmarks" / "pqm_benchmarks",
}


def modules(packages: dict[str, Path]) -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    files = {}
    for package, folder in packages.items():
        for file in folder.rglob("*.py"):
            parts = (package, *file.relative_to(folder).with_suffix("").parts)
            files[".".join(parts).removesuffix(".__init__")] = file
    return files


def imports(files: dict[str, Path]) -> dict[str, set[str]]:
    """By module, the modules among `files` that it imports."""
    arrows = {}
    for module, file in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: imports are written out from the package, not relative"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    named.add(inner if inner in files else str(node.module))
            elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "import_module",
                "__import__",
            ):
                named |= {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
        arrows[module] = {name for name in named if name in files and name != module}
    return arrows


def drawn_order(text: str) -> dict[str, list[list[str]]]:
    """The order of rooms in each package: `package: a < b, c < d`, where b and c do not import each other."""
    lines = re.findall(r"^(pqm_\w+): +(.+(?:\n +.+)*)$", text, re.MULTILINE)
    return {
        package: [[room.strip() for room in level.split(",")] for level in order.split("<")] for package, order in lines
    }


def against_order(arrows: dict[str, set[str]], order: dict[str, list[list[str]]]) -> list[str]:
    """Every import that does not run down the order, and every room that the order leaves out."""
    # packages in the order of their lines; a package itself (its __init__) is above its rooms
    rank: dict[str, tuple[int, int]] = {}
    for number, (package, levels) in enumerate(order.items()):
        rank[package] = (number, len(levels))
        rank |= {f"{package}.{room}": (number, level) for level, rooms in enumerate(levels) for room in rooms}
    wrong = []
    for module, targets in arrows.items():
        room = ".".join(module.split(".")[:2])
        if room not in rank:
            wrong.append(f"{room}: not in the order that CONTRIBUTING.md draws")
            continue
        for target in targets:
            other = ".".join(target.split(".")[:2])
            if other != room and not rank.get(other, (99, 99)) < rank[room]:
                wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def cycle(arrows: dict[str, set[str]]) -> list[str]:
    """A circle of imports, [] if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_and_no_arrow_against_the_order():
    arrows = imports(modules(PACKAGES))
    assert len(arrows) > 200
    assert sum(map(len, arrows.values())) > 500
    assert cycle(arrows) == []
    assert against_order(arrows, drawn_order((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("changed", "circle", "upward"),
    [
        ({}, False, []),
        ({"low/a": "def f():\n    from pkg.low import b", "low/b": "import pkg.low.a"}, True, []),
        ({"low/a": "from pkg.high.c import x"}, True, ["pkg.low.a imports pkg.high.c"]),
        ({"low/a": "if TYPE_CHECKING:\n    from pkg.high import d"}, False, ["pkg.low.a imports pkg.high.d"]),
        ({"beside/e": "import pkg.low.b"}, False, ["pkg.beside.e imports pkg.low.b"]),
        ({"low/a": "from pkg import name"}, True, ["pkg.low.a imports pkg"]),
        ({"new/f": ""}, False, ["pkg.new: not in the order that CONTRIBUTING.md draws"]),
    ],
)
def test_what_is_wrong_is_seen(tmp_path, changed, circle, upward):
    texts = {
        "__init__": "from pkg.high import c",
        "low/a": "from pkg.low import b",
        "low/b": "import os",
        "beside/e": "",
        "high/c": "from pkg.low.a import x\nimport pkg.beside.e",
        "high/d": "",
    }
    for name, text in (texts | changed).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    arrows = imports(modules({"pkg": tmp_path}))
    order = {"pkg": [["low", "beside"], ["high"]]}
    assert bool(cycle(arrows)) == circle
    assert against_order(arrows, order) == upward


def test_the_order_is_read_from_lines_of_a_package():
    text = "text\n\n```\npqm_a: x < y,\n       z < w\npqm_b: v\n```\n"
    assert drawn_order(text) == {"pqm_a": [["x"], ["y", "z"], ["w"]], "pqm_b": [["v"]]}
