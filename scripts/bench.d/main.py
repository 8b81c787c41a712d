"""The benchmarks, by name."""

from __future__ import annotations

import argparse
import sys

import freeze
import inodes
import migrate
import preflight
import run
import start
import store
import transport


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure ckpt beside its peers, in one run, as ratios.",
        epilog="Example: scripts/bench freeze --rounds 9",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    freeze.register(commands)
    inodes.register(commands)
    migrate.register(commands)
    preflight.register(commands)
    run.register(commands)
    start.register(commands)
    store.register(commands)
    transport.register(commands)
    arguments = parser.parse_args()
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
