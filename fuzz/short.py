"""Many inputs in this process: no atheris, no guidance by coverage, the same ones for a seed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from fuzz.mutation import mutate

#: Inputs from which others are made; the newest ones take the place of old ones.
POOL: Final = 500


class Finding(AssertionError):
    """An input for which something did not hold; `data` is the input."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        super().__init__(f"{data[:2000]!r}")


def run(
    check: Callable[[bytes], None],
    seeds: Sequence[bytes],
    *,
    seed: int,
    runs: int | None = None,
    seconds: float = float("inf"),
) -> int:
    """Check all `seeds`, then mutations of them, and of mutations; gives how many inputs.

    Ends after `runs` inputs or `seconds`, but not before all seeds. Raises `Finding` from what
    `check` raised.
    """
    dice = random.Random(seed)
    seeds = list(seeds) or [b"{}"]
    pool = list(seeds)
    deadline = time.monotonic() + seconds
    done = 0
    while done < len(seeds) or ((runs is None or done < runs) and time.monotonic() < deadline):
        # Half of them from a seed: mutations of mutations end up as something that nobody reads.
        parent = dice.choice(seeds if dice.random() < 0.5 else pool)
        data = seeds[done] if done < len(seeds) else mutate(parent, dice, pool)
        try:
            check(data)
        except Exception as error:
            raise Finding(data) from error
        done += 1
        if done > len(seeds) and dice.random() < 0.2 and len(data) < 20_000:
            if len(pool) >= POOL:
                pool[dice.randrange(len(seeds), POOL)] = data
            else:
                pool.append(data)
    return done
