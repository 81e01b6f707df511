"""A process that ends without a word is spoken for; one that ends by itself is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lm_mixup.core.last_words import WORDS

PROGRAM = """
import os, signal, sys
from lm_mixup.core.last_words import last_words
with last_words():
    print("begun", flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "status", "spoken"),
    [
        ("os._exit(1)", 1, True),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, True),
        ("os.kill(os.getpid(), signal.SIGBUS)", -7, True),
        ("pass", 0, False),
        ("sys.exit(2)", 2, False),
        ("if os.fork() == 0: sys.exit(3)\n    os.wait()", 0, False),
    ],
)
def test_only_an_end_without_a_word_is_told(end: str, status: int, spoken: bool):
    command = [sys.executable, "-c", PROGRAM.format(end=end)]
    # Waits until all that hold its stderr have ended, the shell too.
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (status, "begun\n")
    assert ended.stderr == (f"{WORDS}\n" if spoken else "")


def test_an_error_in_the_block_is_raised_and_not_told_twice():
    command = [sys.executable, "-c", PROGRAM.format(end="raise ValueError('mine')")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and "ValueError: mine" in ended.stderr and WORDS not in ended.stderr
