"""``threatbus doctor``: connects to everything that is configured and says what does not work."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import msgspec

from threatbus import config
from threatbus.cli.options import add_command, add_config
from threatbus.cli.outcome import FAILED, OK, WRONG_USAGE, say
from threatbus.cli.text import printable

if TYPE_CHECKING:
    from threatbus.cli.options import Commands
    from threatbus.doctor.checkup import Finding

DETAILS = """\
For each connection, port, key, file and module that the configuration wants: whether it works, if
not why not, and what to do next. Nothing is changed and nothing taken from any queue, so it may
run beside a bus that runs. Run it as the user that the bus runs as. It takes a second or two, and
up to half a minute where something does not answer: a MISP gives a sign of life every 10 s.

Exit codes: 0 all works, 1 something does not, 2 the configuration is wrong.

examples:
  threatbus doctor -c config.yaml
  threatbus doctor -c config.yaml --json | jq '.findings[] | select(.ok | not)'
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "doctor", "connect to all that is configured and say what fails", DETAILS
    )
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Run all checks and print what they found."""
    from threatbus.doctor.checkup import examine  # noqa: PLC0415 (other commands need it not)

    findings, valid = examine(config.load(arguments.config))
    failed = [each for each in findings if not each.ok]
    if arguments.json:
        answer = {"ok": not failed, "findings": findings}
        shown = msgspec.json.format(msgspec.json.encode(answer)).decode() + "\n"
    else:
        shown = "".join(map(_lines, findings))
    sys.stdout.write(shown)
    if failed:
        say(f"{len(failed)} of {len(findings)} checks failed")
    if not valid:
        return WRONG_USAGE
    return FAILED if failed else OK


def _lines(finding: Finding) -> str:
    mark = "ok  " if finding.ok else "FAIL"
    lines = f"{mark}  {finding.subject}: {finding.check}: {finding.detail}"
    if finding.next_step:
        lines += f"\n      -> {finding.next_step}"
    return "".join(f"{printable(line)}\n" for line in lines.splitlines())
