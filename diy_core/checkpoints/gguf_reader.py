"""`GGUFReader` under the name that programs know it by; it lives in `checkpoints.gguf.reader`."""

from diy_core.checkpoints.gguf.reader import GGUFReader

__all__ = ["GGUFReader"]
