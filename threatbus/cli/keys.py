"""``threatbus keys``: makes the CURVE keys of a bus and of its clients."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from threatbus.cli.options import add_command
from threatbus.cli.outcome import FAILED, OK, say
from threatbus.keyfiles import (
    CLIENT_SUFFIX,
    ClientKeys,
    ClientRights,
    client_file,
    is_key,
    is_name,
    rights_file,
    write_public,
    write_secret,
)
from threatbus.messages import STIX_PREFIX

if TYPE_CHECKING:
    from threatbus.cli.options import Commands

DETAILS = """\
  server         makes the keys of the bus: DIR/server.key (secret), DIR/server.pub, and the
                 directory DIR/clients for what the bus knows of its clients
  client NAME    makes the keys of a client: DIR/NAME.key (secret; it goes to where the client
                 runs), and DIR/clients/NAME.yaml, which says what the client may do

Secret files can be read by their owner alone. Nothing is overwritten. What is in DIR/clients counts
at once, without a restart: delete NAME.yaml there, and the client is out.

Exit codes: 0 done, 1 a file is there already or cannot be written.

examples:
  threatbus keys server --directory /etc/threatbus/keys
  threatbus keys client vast --directory /etc/threatbus/keys
  threatbus keys client sensor --read stix2/indicator --write stix2/sighting
"""
SECRET: Final = ".key"
CLIENTS: Final = "clients"
SERVER: Final = "server"


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "keys", "make keys for encryption and access", DETAILS)
    parser.add_argument("action", choices=list(ACTIONS))
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the client")
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path("keys"),
        help="where the keys of the bus are (default: %(default)s)",
    )
    for right, what in (("read", "subscribe to"), ("write", "publish")):
        parser.add_argument(
            f"--{right}",
            metavar="PREFIX",
            action="append",
            help=f"topics that the client may {what}, may be given more than once; '' alone: none "
            f"(default: {STIX_PREFIX}, everything)",
        )
    parser.set_defaults(command=command, parser=parser)


def command(arguments: argparse.Namespace) -> int:
    """Make the keys."""
    if (arguments.name is None) == (arguments.action == "client"):
        arguments.parser.error("client takes a NAME, server takes none")
    if arguments.action == SERVER and not arguments.read is arguments.write is None:
        arguments.parser.error("--read and --write are rights of a client")
    if arguments.name is not None and (not is_name(arguments.name) or arguments.name == SERVER):
        arguments.parser.error("NAME must be letters, digits, . _ and -, and not be server")
    try:
        lines = ACTIONS[arguments.action](arguments)
    except FileExistsError as error:
        say(f"{error.filename} is there already, and keys are never overwritten")
        return FAILED
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        return FAILED
    sys.stdout.write("\n".join(lines) + "\n")
    return OK


def _server(arguments: argparse.Namespace) -> list[str]:
    directory: Path = arguments.directory
    public, secret = _new_pair()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CLIENTS).mkdir(exist_ok=True)
    write_secret(directory / f"{SERVER}{SECRET}", secret + "\n")
    write_public(directory / f"{SERVER}.pub", public + "\n")
    return [
        f"public key of the bus: {public}",
        "Next, in the configuration of the bus, under plugins.apps.zmq:",
        "  curve:",
        f"    secret_key_file: {(directory / f'{SERVER}{SECRET}').absolute()}",
        f"    clients: {(directory / CLIENTS).absolute()}",
        "The user that the bus runs as must be able to read both. Then, for each client:",
        f"  threatbus keys client NAME --directory {directory}",
    ]


def _client(arguments: argparse.Namespace) -> list[str]:
    directory: Path = arguments.directory
    name: str = arguments.name
    server = _public_key_of_bus(directory / f"{SERVER}.pub")
    public, secret = _new_pair()
    keys = ClientKeys(public_key=public, secret_key=secret, server_key=server)
    rights = ClientRights(
        public_key=public, read=_topics(arguments.read), write=_topics(arguments.write)
    )
    secret_file = directory / f"{name}{SECRET}"
    known = directory / CLIENTS / f"{name}{CLIENT_SUFFIX}"
    if known.exists():
        raise FileExistsError(0, "", str(known))
    write_secret(secret_file, client_file(keys, name))
    # Last: from now on the client gets in.
    write_public(known, rights_file(rights, name))
    options = f"--endpoint tcp://HOST:PORT --key-file {secret_file.name}"
    return [
        f"public key of {name}: {public}",
        f"it may read {_listed(rights.read)} and write {_listed(rights.write)} ({known})",
        f"Next: move {secret_file} to where {name} runs, readable by its user alone, and there:",
        *(f"  threatbus tail {options}{_topic_option(topic)}" for topic in rights.read[:1]),
        *(f"  threatbus publish {options} FILE" for _ in rights.write[:1]),
        "or set THREATBUS_KEY_FILE to it for whatever is built on the client library.",
    ]


ACTIONS: Final = {"server": _server, "client": _client}


def _public_key_of_bus(path: Path) -> str:
    try:
        found = path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        first = f"is not there; `threatbus keys server --directory {path.parent}` makes it"
        raise OSError(0, first, str(path)) from None
    if not is_key(found):
        raise OSError(0, "is no public key of a bus", str(path))
    return found


def _new_pair() -> tuple[str, str]:
    """Make a public and a secret key."""
    import zmq  # noqa: PLC0415

    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _topics(given: list[str] | None) -> tuple[str, ...]:
    return (STIX_PREFIX,) if given is None else tuple(filter(None, given))


def _topic_option(topic: str) -> str:
    """Give the option of `threatbus tail` for who may not read everything."""
    return "" if STIX_PREFIX.startswith(topic) else f" --topic {topic}"


def _listed(topics: tuple[str, ...]) -> str:
    return ", ".join(topics) or "nothing"
