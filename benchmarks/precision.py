"""What bf16 matrix products change: every finding of `reproduce` beside the one in float32.

Runs the command twice from nothing, in directories that are gone afterwards, and prints a row a
finding and reading: both verdicts, both effects and their difference, and what each run took; or
reads two `findings.json` that were made before (`--from FLOAT32 BF16`). Training multiplies in bf16
(but for what is left to the compiled loop), evaluation and the gradient's norm too; gradient trials
start from what was trained, and multiply in full.

    python benchmarks/precision.py [--workload digits|mnist] [--seeds N] [--trials N]
                                   [--study ID ...] [--data-dir DIR] [--from FILE FILE]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from batchlab.printing import say_rows


def reproduce(matmul: str, words: list[str]) -> dict[str, Any]:
    """What the command prints with `--json`."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "batchlab", "reproduce", "--matmul", matmul, *words]
        done = subprocess.run([*command, "--out", out, "--json"], check=True, capture_output=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main() -> None:
    """Print one row a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--study", action="append", default=[])
    parser.add_argument("--data-dir")
    parser.add_argument("--from", nargs=2, type=Path, dest="files", metavar="FILE")
    given = parser.parse_args()
    words = ["--workload", given.workload, "--seeds", str(given.seeds)]
    words += [] if given.trials is None else ["--trials", str(given.trials)]
    words += [] if given.data_dir is None else ["--data-dir", given.data_dir]
    for study in given.study:
        words += ["--study", study]
    if given.files:
        plain, rounded = ({"findings": json.loads(path.read_text())} for path in given.files)
    else:
        plain, rounded = (reproduce(matmul, words) for matmul in ("float32", "bf16"))
    rows = []
    for one, other in zip(plain["findings"], rounded["findings"], strict=True):
        effects = one["effect"], other["effect"]
        rows.append(
            {
                "finding": one["id"],
                "convention": one["convention"] or "",
                "float32": one["verdict"],
                "bf16": other["verdict"],
                "effect float32": effects[0],
                "effect bf16": effects[1],
                "difference": None if None in effects else effects[1] - effects[0],
            }
        )
    say_rows(rows)
    changed = sum(row["float32"] != row["bf16"] for row in rows)
    print(f"{changed} of {len(rows)} verdicts differ")
    if not given.files:
        spent = plain["seconds"], rounded["seconds"]
        print(f"float32 {spent[0]} s, bf16 {spent[1]} s, {spent[0] / spent[1]:.2f} times")


if __name__ == "__main__":
    main()
