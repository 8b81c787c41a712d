"""Make the reference sets of the image format: images/head, images/sealed and images/damaged.

    scripts/reference-sets            all; needs root and a CRIU that works
    scripts/reference-sets damaged    only the damaged sets, from the stores that are there

images/head and images/sealed are stores with the same two checkpoints of a real process; head.json and
sealed.json say how they are opened, and what reading them must give. images/damaged/*.json are recipes: what to
change in a copy of a store, and the error that each use must then give. All are committed. They are made anew
only when the format changes, and then the old ones are kept under their version, as images/v1 is, because
they must stay readable for ever.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import damage  # noqa: E402 - found beside this file, and what it imports by the paths above
import making  # noqa: E402


def main(arguments: list[str]) -> int:
    if arguments in (["--help"], ["-h"]):
        print((__doc__ or "").strip())
        return 0
    if arguments not in ([], ["damaged"]):
        print("reference-sets: see scripts/reference-sets --help", file=sys.stderr)
        return 2
    if not arguments:
        making.make_stores()
    damage.make_sets()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
