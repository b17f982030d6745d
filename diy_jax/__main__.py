"""`python -m diy_jax`: the command line of `diy-jax`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diy_core.commands import launch


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return launch.diy_jax(argv)


if __name__ == "__main__":
    sys.exit(main())
