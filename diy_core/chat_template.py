"""`render` under the name that programs know it by; it lives in `diy_core.text.chat.template`."""

from diy_core.text.chat.template import render

__all__ = ["render"]
