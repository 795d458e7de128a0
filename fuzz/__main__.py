"""`python -m fuzz [TARGET …] --runs N`: fuzz with atheris and say how many inputs held."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.targets import CORPUS, TARGETS

#: An input that takes this many seconds is a finding, too.
TIMEOUT_SECS = 20
MAX_BYTES = 64 * 1024
MEMORY_MIB = 2048


def main() -> int:
    """Run each target; 1 if any had a finding."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=20_000, help="inputs per target")
    parser.add_argument("--seed", type=int, default=1, help="other seeds try other inputs")
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz-findings"), help="where bad inputs are kept"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")
    print(f"{'target':16}{'inputs':>10}  verdict", flush=True)
    outcomes = [
        _fuzz(name, options.runs, options.seed, options.findings)
        for name in options.targets or TARGETS
    ]
    return 0 if all(outcomes) else 1


def _fuzz(name: str, runs: int, seed: int, findings: Path) -> bool:
    """Run one target in a process of its own and print its line."""
    findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        shutil.copytree(CORPUS / name, corpus, dirs_exist_ok=True)
        log = Path(corpus, "..").resolve() / f"{Path(corpus).name}.log"
        command = [
            *(sys.executable, "-m", "fuzz.campaign", name, corpus),
            *(f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}"),
            *(f"-timeout={TIMEOUT_SECS}", f"-rss_limit_mb={MEMORY_MIB}"),
            f"-artifact_prefix={findings.resolve()}/{name}-",
        ]
        try:
            with log.open("wb") as output:
                code = subprocess.run(
                    command, stdout=output, stderr=subprocess.STDOUT, check=False
                ).returncode
            text = log.read_text(errors="replace")
        finally:
            log.unlink(missing_ok=True)
    done = re.search(r"^Done (\d+) runs", text, re.MULTILINE)
    inputs = int(done[1]) if done else _last_number(text)
    held = code == 0 and done is not None
    verdict = "held" if held else f"FAILED, the input is in {findings}/"
    print(f"{name:16}{inputs:>10,}  {verdict}", flush=True)
    if not held:
        print(text[-4000:], file=sys.stderr)
    return held


def _last_number(text: str) -> int:
    """Give the count in libFuzzer's last line of progress, for a run that did not end well."""
    return max((int(each) for each in re.findall(r"^#(\d+)\s", text, re.MULTILINE)), default=0)


if __name__ == "__main__":
    sys.exit(main())
