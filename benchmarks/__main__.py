"""``python -m benchmarks [NAME...]``: run benchmarks and write ``benchmarks/results/NAME.json``; all without a name."""

import argparse
import importlib

import torch

from benchmarks.record import record

NAMES = (
    "allocation",
    "inference",
    "latency_budget",
    "projection",
    "recurrent",
    "sfw_step",
    "spectral_oracle",
    "tucker_memory",
    "tucker_step",
)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; default: all")
    parser.add_argument("--more", action="store_true", help="keep the rows of the files, run the cases that lack one")
    given = parser.parse_args()
    names = given.names or list(NAMES)
    if unknown := set(names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    torch.set_num_threads(1)
    for name in names:
        path = record(name, importlib.import_module(f"benchmarks.{name}"), more=given.more)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
