"""Text to training batches: `prepare` writes token files once, `Batches` reads them.

    prepare("corpus/", "data/corpus", tokenizer="models/smollm2", validation=0.01)
    data = TokenData("data/corpus")
    for batch in Batches(data, batch_size=32, sequence_length=1024, seed=0):
        ...

A batch is a dict of numpy arrays, see `Batch`.
"""

from diy_core.data.batches import Batch, Batches, BatchIterator
from diy_core.data.encoding import require_tokenizer, tokenizer_hash
from diy_core.data.files import VALIDATION, DataError
from diy_core.data.preparation import prepare
from diy_core.data.token_data import TokenData
from diy_core.text.byte_tokenizer import BYTES

__all__ = [
    "BYTES",
    "VALIDATION",
    "Batch",
    "BatchIterator",
    "Batches",
    "DataError",
    "TokenData",
    "prepare",
    "require_tokenizer",
    "tokenizer_hash",
]


def __dir__() -> list[str]:
    """The public names, and not the modules that happen to be imported."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
