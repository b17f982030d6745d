"""`HFReader` under the name that programs know it by; it lives in `checkpoints.hf.directory`."""

from diy_core.checkpoints.hf.directory import HFReader

__all__ = ["HFReader"]
