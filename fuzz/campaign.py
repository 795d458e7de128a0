"""One target under atheris (libFuzzer), guided by coverage: ``python -m fuzz.campaign``.

A process of its own, because libFuzzer ends the process when it is done.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from fuzz.mutation import mutate

#: What is watched for coverage; the library behind the border is the oracle and need not be.
INSTRUMENTED = [
    "threatbus.border",
    "threatbus.fastpath",
    "threatbus.config",
    "threatbus_zmq",
    "threatbus_misp.mapping",
    "threatbus_zeek",
    "threatbus_rabbitmq.mapping",
]


def main() -> None:
    """Fuzz TARGET: ``TARGET CORPUS_DIRECTORY libFuzzer's options``; never returns."""
    import atheris  # noqa: PLC0415

    name, corpus, *options = sys.argv[1:]
    # Only what is imported in here is watched.
    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz.targets import TARGETS  # noqa: PLC0415

        target = TARGETS[name]
        check = target.make()
    seeds = target.seeds()
    others = [*seeds, *(path.read_bytes() for path in Path(corpus).iterdir() if path.is_file())]

    def mutation(data: bytes, max_size: int, seed: int) -> bytes:
        dice = random.Random(seed)
        # What libFuzzer does itself finds the bytes that a branch compares with.
        changed = atheris.Mutate(data, max_size) if dice.random() < 0.3 else None
        return (changed or mutate(data, dice, others))[:max_size]

    arguments = [sys.argv[0], *options, corpus]
    atheris.Setup(arguments, check, custom_mutator=mutation)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
