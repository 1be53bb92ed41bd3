"""Make every figure of the documentation again: all benchmarks, one after the other, then all tables and pictures.

Each benchmark is a separate command, listed in README.md of this folder. A finished one is remembered in
`results/.done.json`, so a stopped run resumes with the next one; `--again` repeats it. Benchmarks that keep their runs
as lines of a file resume within themselves too. The times are those of one idle core of an AMD EPYC, and the total is
printed first.

    python benchmarks/bench.py                    # or: make bench
    python benchmarks/bench.py --list             # what there is, how long each takes, and what is done
    python benchmarks/bench.py --only digits,deep
    python benchmarks/bench.py --pictures         # only tables and pictures, from the results that are there: a minute
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DONE = ROOT / "benchmarks" / "results" / ".done.json"


class Command(NamedTuple):
    """A command, without the interpreter.

    Attributes:
        line: The script and its options, from the project's root.
        minutes: How long it takes on one idle core.
    """

    line: str
    minutes: float

    @property
    def script(self) -> Path:
        """The script."""
        return ROOT / shlex.split(self.line)[0]


BENCHMARKS = {
    "digits": Command("benchmarks/digits.py", 5),
    "deep": Command("benchmarks/deep.py", 12),
    "sgd_rules": Command("benchmarks/sgd_rules.py", 40),
    "short_run": Command("benchmarks/short_run.py", 1),
    "front": Command("benchmarks/front.py --workers 1", 240),
    "front_times": Command("benchmarks/front.py --times --workers 1", 25),
    "also_scale": Command("benchmarks/also_scale.py", 40),
    "estimators": Command("benchmarks/estimators.py", 30),
    "false_growths": Command("benchmarks/false_growths.py", 12),
    "experiments": Command("benchmarks/experiments.py all", 30),
    "branches": Command("benchmarks/branches.py all", 10),
    "averages": Command("benchmarks/averages.py", 8),
    "disturbed_gradients": Command("benchmarks/disturbed_gradients.py", 3),
    "norm_accuracy": Command("benchmarks/norm_accuracy.py", 1),
    "sync_batch_norm": Command("benchmarks/sync_batch_norm.py", 4),
    "checkpoint_state": Command("benchmarks/checkpoint_state.py", 1),
    "overhead_split": Command("benchmarks/overhead.py --accumulate 1 --out benchmarks/results/overhead_split.json", 15),
    "overhead": Command("benchmarks/overhead.py", 30),
    "overhead_small": Command(
        "benchmarks/overhead.py --examples 4 --tokens 32 --out benchmarks/results/overhead_small.json", 15
    ),
    "overhead_ddp": Command("benchmarks/overhead.py --ranks 2 --out benchmarks/results/overhead_ddp.json", 15),
    "scaling": Command("benchmarks/scaling.py", 5),
}
PICTURES = {
    "front": Command("benchmarks/front.py --table", 0.2),
    "also_scale": Command("benchmarks/also_scale.py --table", 0.1),
    "sgd_rules": Command("benchmarks/sgd_rules.py --table", 0.1),
    "experiments": Command("benchmarks/experiments.py all --table", 0.3),
    "branches": Command("benchmarks/branches.py all --table", 0.1),
    "scaling": Command("benchmarks/scaling.py --table", 0.1),
    "false_growths": Command("benchmarks/false_growths.py --table", 0.1),
    "policies": Command("docs/draw_policies.py", 0.1),
    "noise scale": Command("docs/draw_noise_scale.py", 0.1),
    "rules": Command("docs/draw_rules.py", 0.1),
    "simulation": Command("docs/draw_simulation.py", 0.5),
    "report": Command("docs/draw_report.py", 1),
    "pictures": Command("docs/draw_pictures.py", 1),
    "architecture": Command("docs/draw_architecture.py", 0.1),
    "readme": Command("benchmarks/readme.py", 0.1),
}


def digest(command: Command) -> str:
    """Hash a benchmark's command and the source of its script.

    Args:
        command: The benchmark.

    Returns:
        The first ten digits.
    """
    return hashlib.sha256(command.line.encode() + command.script.read_bytes()).hexdigest()[:10]


def run(name: str, command: Command) -> int:
    """Run a command, and say how long it took.

    Args:
        name: Its name.
        command: The command.

    Returns:
        Its exit status.
    """
    print(f"\n=== {name}: python {command.line} (about {minutes(command.minutes)})", flush=True)
    started = time.monotonic()
    status = subprocess.run([sys.executable, *shlex.split(command.line)], cwd=ROOT, check=False).returncode
    print(
        f"=== {name}: {'done' if status == 0 else f'FAILED ({status})'} in {minutes((time.monotonic() - started) / 60)}"
    )
    return status


def minutes(number: float) -> str:
    """Write a duration for people.

    Args:
        number: Minutes.

    Returns:
        Seconds, minutes, or hours.
    """
    if number < 1:
        return f"{60 * number:.0f} seconds"
    return f"{number:.0f} minutes" if number < 100 else f"{number / 60:.1f} hours"


def main() -> int:
    """Run what is missing.

    Returns:
        The exit status: 1 if a command failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"comma-separated names: {', '.join(BENCHMARKS)}")
    parser.add_argument("--pictures", action="store_true", help="only tables and pictures, from the existing results")
    parser.add_argument(
        "--list", action="store_true", help="only say what there is, how long it takes and what is done"
    )
    parser.add_argument("--again", action="store_true", help="also repeat what is done")
    options = parser.parse_args()
    only = {name.strip() for name in options.only.split(",") if name.strip()}
    if unknown := only - BENCHMARKS.keys():
        parser.error(f"--only has {', '.join(sorted(unknown))}, but the names are {', '.join(BENCHMARKS)}")
    done = json.loads(DONE.read_text()) if DONE.exists() else {}
    chosen = {name: command for name, command in BENCHMARKS.items() if not only or name in only}
    missing = {name: command for name, command in chosen.items() if options.again or done.get(name) != digest(command)}
    if options.list:
        for name, command in chosen.items():
            state = "to do" if name in missing else "done"
            print(f"{name:20} {state:6} {minutes(command.minutes):>12}  python {command.line}")
        return 0
    failed = []
    if not options.pictures:
        total = sum(command.minutes for command in missing.values())
        number = len(chosen) - len(missing)
        print(f"{number} of {len(chosen)} benchmarks are done; the others take {minutes(total)}.", flush=True)
        for name, command in missing.items():
            if run(name, command):
                failed.append(name)
                continue
            done[name] = digest(command)
            DONE.write_text(json.dumps(done, indent=1) + "\n")
    failed += [name for name, command in PICTURES.items() if run(name, command)]
    if failed:
        print(f"\nFailed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
