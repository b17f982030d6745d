"""Values that are others in every run: nothing but the chance in them is to be explained."""

from __future__ import annotations

from collections.abc import Iterator

from parity.diagnosis.evidence import Evidence
from parity.tracing.compare.errors import relative_error
from parity.tracing.match.align import Pair
from parity.tracing.record.calls import Kind, Site
from parity.tracing.record.spool import Spool
from parity.tracing.record.torch_side import TorchRecord
from parity.tracing.result import Suspect
from parity.tracing.walk import Walk


def chance_suspects(
    walk: Walk, pair: Pair, stage: Pair | None, evidence: Evidence
) -> Iterator[Suspect]:
    """What differs from itself when the PyTorch side runs once more.

    A model can leave dropout on by itself, as `functional.dropout` does where nobody says that the
    model is in evaluation mode. Flax draws from a key that is given, and gives the same again.
    """
    if walk.again is None:
        return
    site, root = (pair if stage is None else stage).torch[0], walk.alignment.pairs[0].torch[0]
    spool = Spool()
    try:
        again = walk.again(spool)
        if _apart(walk.record, again, root, "inputs"):
            return  # the model changes what it is given
        differs = _apart(walk.record, again, site, "outputs" if stage is None else "inputs")
    finally:
        spool.close()
    if differs > evidence.bound:
        words = f"{evidence.what} is another in every run in PyTorch, by {differs:.1e}: "
        words += "dropout that is on, other random numbers, or a state that is kept"
        yield Suspect("chance", words, evidence.target.error, None)


def _apart(first: TorchRecord, second: TorchRecord, site: Site, kind: Kind) -> float:
    """How far the arrays of one call are apart in two runs."""
    if site not in second.calls:
        return 0.0
    then, now = first.calls[site].of(kind), second.calls[site].of(kind)
    pairs = [(then[name], now[name]) for name in then if name in now]
    errors = [
        relative_error(first.spool.get(a), second.spool.get(b))
        for a, b in pairs
        if a.shape == b.shape
    ]
    return max(errors, default=0.0)
