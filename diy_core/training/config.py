"""What a training run is: dataclasses that a YAML file and the command line fill in.

Both twins read the same config. Every field but a few (`resuming.MAY_DIFFER`) decides about the
numbers that come out, so a run is continued only with the config that it was started with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from diy_core.errors import listed
from diy_core.fields import require_float, require_int
from diy_core.system.utf8 import as_utf8

Dtype = Literal["float32", "bfloat16", "float64"]
Schedule = Literal["cosine", "linear", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) and its schedule.

    Attributes:
        learning_rate: the peak of the schedule.
        beta1: decay per step of the mean of the gradients.
        beta2: decay per step of the mean of their squares.
        eps: added to the root of the mean of their squares.
        weight_decay: how much matrices shrink per step, times the learning rate; vectors (the
            scales of norms, biases) are never decayed.
        decay_embeddings: whether the embedding and the output matrix are decayed too.
        clip_norm: gradients are scaled down to this global L2 norm; 0 leaves them as they are.
        schedule: how the learning rate falls after the warmup: along a half cosine, along a
            straight line, or not at all.
        warmup_steps: steps in which the learning rate rises linearly to its peak.
        final_learning_rate: where the schedule ends, as a share of the peak.
    """

    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    clip_norm: float = 1.0
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    final_learning_rate: float = 0.1

    def __post_init__(self) -> None:
        require_float(self, "learning_rate", positive=True)
        require_float(self, "eps", positive=True)
        for name in ("beta1", "beta2", "weight_decay", "clip_norm", "final_learning_rate"):
            require_float(self, name, minimum=0.0)
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be less than 1, got {getattr(self, name)!r}")
        if self.final_learning_rate > 1:
            raise ValueError(
                "final_learning_rate is a share of the peak, from 0 to 1, got "
                f"{self.final_learning_rate!r}"
            )
        _require_bool(self, "decay_embeddings")
        _require_choice(self, "schedule", get_args(Schedule))
        _require_count(self, "warmup_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy over the counted tokens of a step.

    Attributes:
        z_loss: weight of logsumexp(logits)^2, which keeps the logits from drifting (PaLM,
            section 5, https://arxiv.org/abs/2204.02311).
        chunk_tokens: of how many tokens the logits exist at one time, which decides how much memory
            they take, and in which order the loss is summed.
    """

    z_loss: float = 0.0
    chunk_tokens: int = 1024

    def __post_init__(self) -> None:
        require_float(self, "z_loss", minimum=0.0)
        require_int(self, "chunk_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the tokens come from.

    Attributes:
        train: `builtin:pydoc` (the documentation of Python's own library), a file of text, or of
            texts or chats in JSONL or parquet, a directory or a pattern of such files, or a
            directory of prepared tokens. Of chats only the assistant's turns are counted in the
            loss.
        validation: a share of the training documents that is held out, such as 0.01 (0: none), or a
            source like `train`.
        tokenizer: `bytes` (256 values and a few marks) or a Hugging Face directory; None takes the
            model's.
        packing: several documents share a row, each of which sees only itself; False gives each
            document a row of its own.
        separator: what stands between the documents of a text file; None: a file is one document.
        field: the column of JSON lines and parquet that is learnt; None: text, messages,
            conversations, or prompt and completion, whichever a record holds.
        workers: threads that read batches ahead; 0: they are read when they are needed.
    """

    train: str
    validation: float | str = 0.0
    tokenizer: str | None = None
    packing: bool = True
    separator: str | None = None
    field: str | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        _require_text(self, "train")
        for name in ("tokenizer", "separator", "field"):
            if getattr(self, name) is not None:
                _require_text(self, name)
        if isinstance(self.validation, str):
            _require_text(self, "validation")
        else:
            require_float(self, "validation", minimum=0.0)
            if self.validation >= 1:
                raise ValueError(
                    "validation must be a share of the documents, less than 1, or a path, got "
                    f"{self.validation!r}"
                )
        _require_bool(self, "packing")
        _require_count(self, "workers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        run_dir: the directory of the run; made if it does not exist.
        model: a Hugging Face directory to start from, or the content of a `config.json` to start
            from scratch, in JSON or in YAML.
        data: where the tokens come from.
        steps: optimizer steps of the whole run; the schedule ends there.
        stop_at: leave after this many steps, as if interrupted; the schedule stays that of `steps`.
        seed: of the first weights, of dropout and of the order of the data.
        dtype: in which the model computes. Weights and moments are float32 (float64 for float64).
        batch_size: rows of one optimizer step, all accumulation passes together.
        sequence_length: tokens of a row.
        accumulation_steps: passes that one optimizer step is cut into.
        remat: compute activations again in the backward pass instead of keeping them.
        compile: in PyTorch, run the layers through `torch.compile`, which needs a C++ compiler on a
            CPU and takes a minute; JAX always compiles.
        max_skipped_steps: the run ends after this many steps in a row with a loss or a gradient
            that is not finite.
        checkpoint_every: steps between two checkpoints.
        eval_every: steps between two evaluations on the validation data, the first of them before
            the first step, and one more after the last; 0: none.
        log_every: steps between two lines of the log and two points in TensorBoard.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: checkpoints at multiples of this step are kept for good; 0: none.
        keep_best: an evaluation that is the best so far also saves, and that checkpoint is kept
            until a better one.
        optimizer: AdamW and its schedule.
        loss: what is minimised.
    """

    run_dir: str
    model: str | dict[str, Any]
    data: DataConfig
    steps: int
    stop_at: int | None = None
    seed: int = 0
    dtype: Dtype = "float32"
    batch_size: int
    sequence_length: int
    accumulation_steps: int = 1
    remat: bool = False
    compile: bool = False
    max_skipped_steps: int = 10
    checkpoint_every: int = 1000
    eval_every: int = 0
    log_every: int = 10
    keep_last: int = 2
    keep_every: int = 0
    keep_best: bool = True
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        _require_text(self, "run_dir")
        for name in (
            "steps",
            "batch_size",
            "sequence_length",
            "accumulation_steps",
            "max_skipped_steps",
            "checkpoint_every",
            "log_every",
            "keep_last",
        ):
            require_int(self, name)
        for name in ("seed", "eval_every", "keep_every"):
            _require_count(self, name)
        if self.seed >= 1 << 32:
            raise ValueError(f"seed must be less than 2**32, got {self.seed}")
        if self.stop_at is not None:
            _require_count(self, "stop_at")
        _require_bool(self, "remat")
        _require_bool(self, "compile")
        _require_bool(self, "keep_best")
        _require_choice(self, "dtype", get_args(Dtype))
        if isinstance(self.model, str):
            _require_text(self, "model")
        elif not isinstance(self.model, Mapping):
            raise ValueError(
                "model must be a Hugging Face directory or the content of a config.json, got "
                f"{self.model!r}"
            )
        else:
            as_utf8("model", json.dumps(self.model, ensure_ascii=False, default=str))
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation_steps "
                f"({self.accumulation_steps})"
            )
        for name, part in (
            ("data", DataConfig),
            ("optimizer", OptimizerConfig),
            ("loss", LossConfig),
        ):
            if not isinstance(getattr(self, name), part):
                raise ValueError(f"{name} must be of {part.__name__}, got {getattr(self, name)!r}")
        self._require_held()
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must not be more than "
                f"steps ({self.steps})"
            )

    def _require_held(self) -> None:
        """Raise for a number that overflows in the dtype of the weights, where AdamW uses it."""
        dtype, most = ("float64", 1.7e308) if self.dtype == "float64" else ("float32", 3.4e38)
        adam = self.optimizer
        for name, value in (
            *((f"optimizer.{n}", getattr(adam, n)) for n in ("eps", "weight_decay", "clip_norm")),
            ("loss.z_loss", self.loss.z_loss),
        ):
            if value > most:
                raise ValueError(f"{name} must be at most {most}, which {dtype} holds, got {value}")
        largest = most / max(1 / (1 - adam.beta1), adam.weight_decay)
        if adam.learning_rate > largest:
            raise ValueError(
                f"optimizer.learning_rate must be at most {largest:.2g}, else a step overflows in "
                f"{dtype}, got {adam.learning_rate!r}"
            )

    @property
    def last_step(self) -> int:
        """Where this start of the run ends: `steps`, or `stop_at` if that is earlier."""
        return self.steps if self.stop_at is None else min(self.steps, self.stop_at)


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested dicts, fit for YAML and JSON."""
    return dataclasses.asdict(config)


def _require_bool(owner: object, name: str) -> None:
    if not isinstance(getattr(owner, name), bool):
        raise ValueError(f"{name} must be true or false, got {getattr(owner, name)!r}")


def _require_count(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be an integer of at least 0, got {value!r}")


def _require_text(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text that is not empty, got {value!r}")
    as_utf8(name, value)  # config.yaml could not keep it


def _require_choice(owner: object, name: str, choices: tuple[str, ...]) -> None:
    if getattr(owner, name) not in choices:
        raise ValueError(
            f"{name} {getattr(owner, name)!r} is not known; choose one of {listed(choices)}"
        )
