"""One line for a run that ends without a word.

Ray ends a driver from native code, at once and in silence, when Ray's own node process dies: of a full
/dev/shm (SIGBUS), or by the system for its memory. So does `kill -9`, and a crash in a native library. A
shell that holds the other end of a pipe outlives all of these, and says so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

WORDS = (
    "failed: the run ended without a word of its own. It was killed, or Ray's node process was: memory or "
    "/dev/shm ran out (see df -h /dev/shm; dmesg names what was killed for memory), or a native library "
    "crashed. Make room; the same command again goes on where it stopped"
)
_SHELL = 'read -r word || printf "%s\\n" "$0" >&2'


@contextmanager
def last_words() -> Iterator[None]:
    """Whatever ends this process inside the `with` block, and not the block, is told on stderr."""
    inner, outer = os.pipe()  # no program that this process starts inherits the outer end
    shell = subprocess.Popen(
        ["/bin/sh", "-c", _SHELL, WORDS],
        stdin=inner,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C and a signal to the process group are not for it
    )
    os.close(inner)
    ours = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == ours:  # a forked child that leaves the block has not ended the run
            with suppress(BrokenPipeError):
                os.write(outer, b"done\n")
            os.close(outer)
            shell.wait()
