"""`parity check`: what is compared, how exactly, and the verdict."""

from parity.check.kinds import KINDS

__all__ = ["KINDS"]
