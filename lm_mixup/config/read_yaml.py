"""YAML from a file or a command line, safely: a few lines of aliases may not become gigabytes."""

from __future__ import annotations

from typing import IO, Any

import yaml

# Of what the text stands for once every alias is replaced; the longest recipe has some hundred.
MOST_VALUES = 100_000


def read_yaml(text: str | IO[bytes]) -> Any:
    """The plain value that a YAML document stands for.

    Raises:
        yaml.YAMLError: It is not valid YAML, nests too deep, holds itself, or its aliases (`*name`) stand for
            more than `MOST_VALUES` values.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # Before anything is built: merge keys (`<<`) copy what they name.
        if _values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(
                f"it stands for more than {MOST_VALUES:,} values; write out what its aliases (*name) repeat"
            )
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it nests too deep") from None
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node stands for, aliases replaced; `known` holds those of nodes seen before."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise yaml.YAMLError("an alias (*name) stands inside what it names")
        return count
    known[id(node)] = None
    children = node.value
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    known[id(node)] = count = 1 + sum(_values(child, known) for child in children)
    return count
