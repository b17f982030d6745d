"""`Tokenizer` under the name that programs know it by; it lives in `diy_core.text.tokenizer`."""

from diy_core.text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
