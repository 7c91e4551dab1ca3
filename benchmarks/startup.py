"""How long a user waits for the first answer: ``python -m benchmarks.startup``; fails where a limit is passed.

Each command is a process of its own; the least of several runs counts, which a busy machine disturbs least.
"""

import subprocess
import sys
import time

RUNS = 7
TRAIN = ("-m", "scoreexp.train")
LIMITS = {  # command: seconds
    "import scoreexp": (("-c", "import scoreexp"), 0.15),
    "the whole configuration (--cfg job)": ((*TRAIN, "--cfg", "job"), 0.6),
    "a misspelt key": ((*TRAIN, "sede=1"), 1.5),
    "a missing picture": ((*TRAIN, "data.path=missing.png"), 1.5),
    "a missing data set": ((*TRAIN, "experiment=celeba64_ours", "data.root=missing"), 1.5),
}


def seconds(arguments: tuple[str, ...]) -> float:
    """The least wall time of ``python ARGUMENTS``."""
    found = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True)
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> int:
    """Print the table; returns 1 where a limit is passed."""
    late = 0
    for name, (arguments, limit) in LIMITS.items():
        taken = seconds(arguments)
        late += taken > limit
        print(f"{name:<40}{taken:6.2f} s, at most {limit:g}{'' if taken <= limit else ': TOO LATE'}")
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
