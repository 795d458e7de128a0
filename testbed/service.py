"""What every service of the testbed is: a process that is started, killed, and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

#: Seconds in which a service has to answer, and in which it has to stop.
START_SECS: Final = 100.0
STOP_SECS: Final = 30.0

# Its input ends when whoever holds the other end does, in whatever way.
_WATCH: Final = 'read -r _; kill -s KILL -- "-$1"'


class Process:
    """A program in a session of its own, which ends with the process that has started it.

    A shell beside it waits for the end of a pipe, which comes with the end of its starter, also
    by SIGKILL, and then kills the program with all that it has started. (PR_SET_PDEATHSIG would
    take the end of the *thread* that started it for that, and would leave its children.)
    """

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str], directory: Path
    ) -> None:
        """Start it in `directory`, where the file ``output`` gets what it says."""
        with (directory / "output").open("ab") as output:
            self._program = subprocess.Popen(
                command,
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._watch = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", str(self.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process id of the program, which is also that of its group."""
        return self._program.pid

    def is_alive(self) -> bool:
        """Say whether it runs."""
        if self._program.poll() is None:
            return True
        self._end_watch()
        return False

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it has started."""
        os.killpg(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; gives its exit code."""
        code = self._program.wait(STOP_SECS)
        self._end_watch()
        return code

    def _end_watch(self) -> None:
        # Before its pipe: nothing must be killed that has got the number of this one.
        self._watch.kill()
        self._watch.wait()
        assert self._watch.stdin is not None
        self._watch.stdin.close()


class Service(ABC):
    """One service, for a ``with`` block, in a directory of its own.

    It can be killed and started again, and then has what it had on disk.
    """

    def __init__(self, name: str) -> None:
        """Prepare it: `name` is what its directory and errors go by."""
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        #: The environment variables that it runs with.
        self.environment: Mapping[str, str] = os.environ
        self._process: Process | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Give the command that runs it."""

    @abstractmethod
    def answers(self) -> bool:
        """Say whether it does what it is there for."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the one that runs."""
        return self._running().pid

    @property
    def log(self) -> str:
        """What all its runs have said."""
        return (self.directory / "output").read_text(errors="replace")

    def start(self) -> None:
        """Start it; returns when it answers, `TimeoutError` or `RuntimeError` if it never does."""
        self._process = Process(self.command(), self.environment, self.directory)
        deadline = time.monotonic() + START_SECS
        while not self.answers():
            if not self.is_alive():
                raise RuntimeError(f"{self.name} has ended:\n{self.log[-2000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} does not answer:\n{self.log[-2000:]}")
            time.sleep(0.02)

    def is_alive(self) -> bool:
        """Say whether the process runs."""
        return self._process is not None and self._process.is_alive()

    def kill(self) -> None:
        """Kill it in the middle of whatever it does."""
        self.signal(signal.SIGKILL)
        self._running().wait()

    def stop(self) -> int:
        """Stop it as a service manager would; gives its exit code."""
        self.signal(signal.SIGTERM)
        return self._running().wait()

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        self._running().signal(number)

    def close(self) -> None:
        """Kill what runs and remove the directory."""
        if self.is_alive():
            # One that is paused or that drains need not be waited for.
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _running(self) -> Process:
        assert self._process is not None
        return self._process
