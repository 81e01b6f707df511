"""YAML that would eat the memory is refused before anything is built of it."""

import io
import itertools
import tracemalloc

import pytest
import yaml

from lm_mixup.config.load import load_config
from lm_mixup.config.read_yaml import MOST_VALUES, read_yaml
from lm_mixup.core.errors import InputError


def _laughs(first: str, line: str, levels: int = 12) -> str:
    """Each level names the one before nine times: 9 ** 12 values."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + line.format(", ".join([f"*a{level - 1}"] * 9)))
    return "\n".join(lines)


BOMBS = {
    "sequences": _laughs("[x]", "[{}]"),
    "merge keys": _laughs("{k: x}", "{{<<: [{}]}}"),
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_aliases_that_multiply_are_refused_on_one_line(tmp_path, text):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as refused:
            load_config(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(refused.value) == (
        f"config {path}: not valid YAML (it stands for more than {MOST_VALUES:,} values; "
        "write out what its aliases (*name) repeat)"
    )
    assert peak < 20_000_000


@pytest.mark.parametrize(
    ("text", "why"),
    [("a: &a [*a]", "stands inside what it names"), ("[" * 20_000 + "]" * 20_000, "nests too deep")],
)
def test_what_holds_itself_or_has_no_end_is_refused_on_one_line(tmp_path, text, why):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=why) as refused:
        load_config(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError):
        load_config("quickstart", [f"seed={text}"])


def test_the_limit_counts_what_the_text_stands_for():
    exactly = "[" + ", ".join(itertools.repeat("1", MOST_VALUES - 1)) + "]"
    assert len(read_yaml(exactly)) == MOST_VALUES - 1
    with pytest.raises(yaml.YAMLError, match="more than"):
        read_yaml(exactly[:-1] + ", 1]")


def test_aliases_and_merge_keys_of_an_honest_config_are_read():
    text = "one: &one {a: 1, b: [2]}\ntwo: {<<: *one, a: 3}\nthree: *one\n"
    assert read_yaml(text) == {
        "one": {"a": 1, "b": [2]},
        "two": {"a": 3, "b": [2]},
        "three": {"a": 1, "b": [2]},
    }
    assert read_yaml("") is None
    assert read_yaml(io.BytesIO(b"# nothing\n")) is None
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.system [echo]")
