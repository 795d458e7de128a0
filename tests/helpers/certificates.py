"""Certificates made for a test, and servers that show them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

HOST = "localhost"


class Certificates:
    """An authority, what it has signed, and an authority that nobody has heard of.

    `file` gives the path of each by name: ca, stranger, and what `issue` made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        for name, authority in (("ca", self._authority), ("stranger", trustme.CA())):
            authority.cert_pem.write_to_path(str(directory / f"{name}.pem"))
            issued = authority.issue_cert(HOST)
            chain = "server" if name == "ca" else "strangers_server"
            issued.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{chain}.pem"))
        self.issue("client")
        self.issue("expired", not_after=datetime.now(UTC) - timedelta(days=1))
        self.issue("other_host", host="elsewhere.example")

    def issue(self, name: str, host: str = HOST, not_after: datetime | None = None) -> None:
        """Make a certificate for a host, with its key in the same file."""
        issued = self._authority.issue_cert(host, not_after=not_after)
        path = self._directory / f"{name}.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))

    def file(self, name: str) -> str:
        """Give the path of a file."""
        return str(self._directory / f"{name}.pem")

    def server(self, name: str = "server") -> ssl.SSLContext:
        """Give the context of a server that shows the certificate with this name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file(name))
        return context
