"""Keys of a bus and its clients, made as an operator makes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from threatbus.cli import main
from threatbus.client import Endpoint
from threatbus.client.endpoint import read_keys
from threatbus.keyfiles import ClientKeys


class Keys:
    """A directory with the keys of one bus."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        assert main(["keys", "server", "--directory", str(directory)]) == 0

    @property
    def section(self) -> dict[str, Any]:
        """What the bus's section `curve` says."""
        return {
            "secret_key_file": str(self.directory / "server.key"),
            "clients": str(self.directory / "clients"),
        }

    def client(
        self, name: str, read: list[str] | None = None, write: list[str] | None = None
    ) -> ClientKeys:
        """Make a client with these rights; None: all of them."""
        rights = []
        for option, topics in (("--read", read), ("--write", write)):
            for topic in [] if topics is None else topics or [""]:
                rights += [option, topic]
        assert main(["keys", "client", name, "--directory", str(self.directory), *rights]) == 0
        keys = read_keys(self.secret_file(name))
        assert keys is not None
        return keys

    def secret_file(self, name: str) -> str:
        """Give the path of a client's own file."""
        return str(self.directory / f"{name}.key")

    def known(self, name: str) -> Path:
        """Give the bus's file on a client."""
        return self.directory / "clients" / f"{name}.yaml"

    def revoke(self, name: str) -> str:
        """Take a client's key away; gives the content of the file, by which it is given back."""
        content = self.known(name).read_text()
        self.known(name).unlink()
        return content

    def rewrite(self, name: str, content: str) -> None:
        """Replace the bus's file on a client, as editors do."""
        new = self.known(name).with_suffix(".new")
        new.write_text(content)
        os.replace(new, self.known(name))  # noqa: PTH105 (in one step)


def endpoint(port: int, keys: ClientKeys | None = None) -> Endpoint:
    """Give the endpoint of a bus on this machine."""
    return Endpoint("127.0.0.1", port, keys)
