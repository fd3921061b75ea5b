"""python -m benchmarks.gpu_day.worker KIND... --sizes JSON --home DIR: one process of measurements.

KIND: peaks, variants, kernels, machine. DIR/KIND.json gets each figure as soon as it is known, and what it has already
is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_day import kernels, machine, peaks, variants
from benchmarks.gpu_day.product import Sizes
from benchmarks.gpu_day.workbench import Ledger, Workbench


def main(words: list[str]) -> int:
    """Measure all of these kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=sorted(KINDS))
    parser.add_argument("--sizes", type=json.loads, required=True)
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args(words)
    options.home.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds:
        KINDS[kind](Sizes(**options.sizes), options.home, Ledger(options.home / f"{kind}.json"))
    return 0


def all_peaks(sizes: Sizes, home: Path, ledger: Ledger) -> None:
    """Measure the memory of every setting."""
    bench: Any = workbench(home)
    free = psutil.virtual_memory().available
    for name, changes in peaks.settings(sizes).items():
        ledger.measure(name, partial(peaks.measure, bench, sizes, home, changes, free))


def all_variants(sizes: Sizes, home: Path, ledger: Ledger) -> None:
    """Measure the speed of every variant."""
    bench: Any = workbench(home)
    for name, variant in variants.variants(sizes).items():
        ledger.measure(name, partial(variants.measure, bench, sizes, home, variant))


@cache
def workbench(home: Path) -> Workbench:
    """Return this process's workbench: it joins a process group once."""
    return Workbench(home)


KINDS: dict[str, Callable[[Sizes, Path, Ledger], None]] = {
    "kernels": kernels.all_kernels,
    "machine": machine.all_figures,
    "peaks": all_peaks,
    "variants": all_variants,
}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
