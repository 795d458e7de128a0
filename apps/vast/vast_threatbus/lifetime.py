"""A program: ``lifetime.py PARENT PROGRAM ARGUMENT…`` becomes PROGRAM, which ends with PARENT.

A pipeline that waits for events would outlive a wrapper that was killed, since nothing tells it.
Linux does, if asked to (prctl(2), PR_SET_PDEATHSIG); the wish survives the exec. Strictly it is
the end of the *thread* that started the process which counts, so that must be one that lasts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Ask for the signal, and become the program."""
    parent, program = int(arguments[0]), arguments[1]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have ended before the wish was made.
    if os.getppid() == parent:
        os.execv(program, arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
