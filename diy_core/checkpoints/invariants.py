"""What is true of every checkpoint that is read, written, converted or exported.

The list for people is in docs/convert.md. Each invariant is checked in one place, which all doors
go through: names, shapes, heads and buffers by `diy_core.stored_names.read_names` (in a tree of
Flax and in a checkpoint of a training run by the same `diy_core.mapping.match`), floats by
`diy_core.checkpoints.dtypes.fault_of_dtype`, values by `fault_of_values` there, which
`diy_core.checkpoints.interface.Reader.read_group` asks, and
`diy_core.training.checkpoints.files.Checkpoint.read` for training runs.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Invariant:
    """One of them.

    Attributes:
        name: a sentence that is true.
        otherwise: what happens where it is not.
    """

    name: str
    otherwise: str


INVARIANTS = (
    Invariant("a config is there", "refused: nothing says what the tensors are"),
    Invariant("every tensor is there", "refused: which one is missing"),
    Invariant("no other tensor is there", "refused: which one is too much"),
    Invariant("shapes are those of the config", "refused: both shapes"),
    Invariant("weights are floats", "refused: which dtype was found"),
    Invariant("values are finite", "refused in files, read or written: how many, and where"),
    Invariant("a tied head is the embedding", "refused: it would be lost; an equal one is noted"),
    Invariant("an untied head is there", "refused: tie_word_embeddings decides"),
    Invariant("what is left out has no effect", "refused: a tensor too many"),
    Invariant("buffers are noted", "buffers of the config are left out, with a note"),
)
