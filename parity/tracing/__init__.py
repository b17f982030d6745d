"""Find the first place where a PyTorch model and a Flax model part."""

from parity.tracing.infer import Inferred
from parity.tracing.result import Divergence, TraceResult
from parity.tracing.rules import Rule, RuleError, twin_rules
from parity.tracing.trace import infer_rules, trace

__all__ = [
    "Divergence",
    "Inferred",
    "Rule",
    "RuleError",
    "TraceResult",
    "infer_rules",
    "trace",
    "twin_rules",
]
