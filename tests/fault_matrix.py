"""The table of docs/explanation/reliability.md, from the marks of the tests that inject each fault:

    @pytest.mark.fault("what goes wrong", how="how the test makes it", lost="what is lost", recovers="how it recovers")

on a test, or in the `marks` of a `pytest.param`. `python tests/fault_matrix.py` writes the table anew.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "explanation" / "reliability.md"
BEGIN, END = "<!-- faults: written by tests/fault_matrix.py -->", "<!-- /faults -->"
COLUMNS = ("how", "lost", "recovers")


def faults() -> Iterator[tuple[str, dict[str, str]]]:
    """(the test, its mark's texts) in the order of files and lines. ValueError for a mark that is not as above."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for function in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in (node for decorator in function.decorator_list for node in ast.walk(decorator)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                    test = f"{path.relative_to(TESTS)}::{function.name}"
                    texts = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
                    if len(call.args) != 1 or sorted(texts) != sorted(COLUMNS) or not all(texts.values()):
                        raise ValueError(f"{test}: write fault(name, how=..., lost=..., recovers=...)")
                    yield test, {"name": ast.literal_eval(call.args[0]), **texts}


def table() -> str:
    lines = ["| fault | how it is injected | what is lost | how it recovers | test |", "|---|---|---|---|---|"]
    for test, texts in faults():
        cells = [texts[name].replace("|", "\\|") for name in ("name", *COLUMNS)]
        lines.append(f"| {' | '.join(cells)} | `{test}` |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with the table as it should be."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
