"""Writes options as YAML files, and reads YAML files from any source within limits."""

from pathlib import Path
from typing import Any

import yaml

from pqm_fast.common.files import atomic_file
from pqm_fast.errors import PQMError

MOST_NODES = 100_000  # values and names, counted as often as aliases (`*name`) repeat them


def read_yaml(path: Path) -> Any:
    """Reads a file. Raises PQMError if that fails, or if the contents are larger than options can reasonably be."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None and (count := _nodes(root, {})) > MOST_NODES:
            raise ValueError(f"{count:,} values, aliases included, where at most {MOST_NODES:,} are allowed")
        _check_names(root, set())
        return None if root is None else loader.construct_document(root)
    except FileNotFoundError as error:
        raise PQMError(f"{path}: no such file; check the path") from error
    except RecursionError as error:
        raise PQMError(f"{path}: cannot be read as YAML or JSON: it is nested too deeply") from error
    except Exception as error:  # errors of constructors have no common class
        raise PQMError(f"{path}: cannot be read as YAML or JSON: {error}") from error


def _check_names(node: yaml.Node | None, checked_nodes: set[int]) -> None:
    """Raises ValueError for a name that appears twice: YAML would silently take the last one."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in checked_nodes:
        return
    checked_nodes.add(id(node))
    names: set[str] = set()
    for child in node.value:
        name, value = child if isinstance(node, yaml.MappingNode) else (None, child)
        if isinstance(name, yaml.ScalarNode):
            if name.value in names:
                line = name.start_mark.line + 1
                raise ValueError(f"line {line}: {name.value} appears for the second time; keep only one")
            names.add(name.value)
        _check_names(value, checked_nodes)


def write_yaml(path: Path, value: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _nodes(node: yaml.Node, node_counts: dict[int, int]) -> int:
    """The number of nodes with every alias written out. Raises RecursionError for an alias within itself."""
    if id(node) not in node_counts:
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for child in children for part in (child if pairs else [child])]
        node_counts[id(node)] = 1 + sum(_nodes(part, node_counts) for part in parts)
    return node_counts[id(node)]
