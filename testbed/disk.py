"""A file system that can be full: a small tmpfs, where this user may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Self


class SmallDisk:
    """A small file system at a directory, for a ``with`` block.

    Raises `PermissionError` on entering where nothing may be mounted.
    """

    def __init__(self, directory: Path, size: int = 16 * 1024 * 1024) -> None:
        self.directory = directory
        self._size = size

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ["-o", f"size={self._size},mode=0700", "tmpfs", str(self.directory)]
        try:
            subprocess.run(["mount", "-t", "tmpfs", *options], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PermissionError(f"nothing can be mounted at {self.directory}") from error
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.directory)], check=False, capture_output=True)

    @property
    def _filler(self) -> Path:
        return self.directory / "filler"

    def fill(self) -> None:
        """Leave no room on it."""
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)
