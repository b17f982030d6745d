"""What a run says while it goes on: speed, use of the machine, time left, memory."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from diy_core.config import DIYConfig
from diy_core.system.held import named
from diy_core.system.standard_error import standard_error


def flops_per_token(config: DIYConfig, sequence_length: int) -> float:
    """Floating point operations that training on one token takes, for the share of the peak (MFU).

        6 P + 12 L N H S

    P weights take part in matrix products: all but the embedding and the norms, and the output
    matrix also where it is the embedding (tied). Each costs a multiplication and an addition
    forward, and twice that backward. In each of L layers and N heads of H channels, the products of
    queries with S keys and of S probabilities with values cost 2 H S each forward, twice that
    backward. What `remat` computes again and what the causal mask leaves out is not subtracted or
    added, as in PaLM, appendix B (https://arxiv.org/abs/2204.02311).

        MFU = tokens per second * flops_per_token / matmul_peak

    Tokens are all positions of a batch, padding too, since the machine computes them.

    Args:
        config: of the model.
        sequence_length: S.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_size
    attention = 2 * hidden * heads + 2 * hidden * config.kv_heads * config.head_size
    layer = attention + 3 * hidden * config.intermediate_size
    weights = config.num_hidden_layers * layer + hidden * config.vocab_size
    return 6.0 * weights + 12.0 * config.num_hidden_layers * heads * sequence_length


def measure_peak(multiply: Callable[[], object], flops: float, seconds: float = 0.5) -> float:
    """Floating point operations per second of the fastest of many large matrix products.

    Args:
        multiply: does one product and waits for its end; it is called once before the clock starts.
        flops: of one product: 2 m n k.
        seconds: how long to repeat it: on a machine that others use too, some products must find it
            free.
    """
    multiply()
    best = float("inf")
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or best == float("inf"):
        multiply()
        best = min(best, time.perf_counter() - start)
    return flops / best


def process_memory() -> int:
    """Bytes of this process that were in memory at the peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Clock:
    """The speed of the steps since it was last asked.

    Args:
        positions: tokens of a step, padding too.
        flops_per_token: of that name.
        matmul_peak: operations per second; None: not known.
    """

    def __init__(self, positions: int, flops_per_token: float, matmul_peak: float | None) -> None:
        self._positions, self._flops, self._peak = positions, flops_per_token, matmul_peak
        self._start, self._step = 0.0, -1

    def reset(self, step: int) -> None:
        """Begin to count here: what came before was the compiler, an evaluation or the disk."""
        self._start, self._step = time.perf_counter(), step

    def read(self, step: int) -> dict[str, float | None]:
        """Seconds of a step, speed, and share of the peak, since the last call of this or `reset`.

        All are None where no step lies between.
        """
        steps = step - self._step if self._step >= 0 else 0
        seconds = (time.perf_counter() - self._start) / steps if steps else 0.0
        self.reset(step)
        if not seconds:
            return {"seconds_per_step": None, "tokens_per_second": None, "mfu": None}
        speed = self._positions / seconds
        share = speed * self._flops / self._peak if self._peak else None
        return {"seconds_per_step": seconds, "tokens_per_second": speed, "mfu": share}


class Report:
    """Lines on standard error; on a terminal the line of the current step stays in its place.

    Where nobody reads any more, they are dropped.

    Args:
        steps: where this start of the run ends.
    """

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps
        self._console = Console(file=standard_error(), highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._is_doing = False  # its line is one of `doing`
        self._waiting: deque[Callable[[], object]] = deque()
        self._is_printing = False

    def __enter__(self) -> Report:
        if self._console.is_terminal:
            self._live = Live(Text(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            if self._is_doing:
                self._live.update(Text())  # it is over, or has failed
            self._in_turn(self._live.stop)

    def say(self, text: str) -> None:
        """Say something that stays."""
        self._print(Text(named(text)))

    def _print(self, text: Text) -> None:
        self._in_turn(functools.partial(self._console.print, text))

    def _in_turn(self, show: Callable[[], object]) -> None:
        """Show one thing after the other, also where a signal says something in between.

        rich holds a line until it is written: what prints in the middle of that writes it again.
        """
        self._waiting.append(show)
        while self._waiting and not self._is_printing:
            self._is_printing = True
            try:
                while self._waiting:
                    self._waiting.popleft()()
            finally:
                self._is_printing = False

    def doing(self, text: str) -> None:
        """Say what goes on; on a terminal a sign turns beside it until there is something new."""
        if self._live is None:
            self.say(text)
        else:
            self._is_doing = True
            self._live.update(Spinner("line", Text(named(text))))

    def last_words(self, text: str) -> None:
        """Say what a signal leads to; the next one may end the process without another word."""
        # A line that stays in its place hides it.
        self._in_turn(functools.partial(self._console.show_cursor, True))
        self.say(text)

    def step(self, row: dict[str, Any], timing: dict[str, Any], due: bool) -> None:
        """Show a step: its line of `metrics.jsonl` and the last of `timings.jsonl`.

        Args:
            row: of this step.
            timing: of a step not long ago.
            due: whether a file shall have a line of it.
        """
        if self._live is None and not due:
            return
        width = self._console.width if self._live is not None else None
        text = Text(line(row, timing, self.steps, width))
        if self._live is not None:
            self._is_doing = False
            self._live.update(text)
        else:
            self._print(text)


def line(row: dict[str, Any], timing: dict[str, Any], steps: int, width: int | None = None) -> str:
    """One line of progress, such as `step 20/100  loss 2.3456  ...  0:01:20 left  1.20 GB`.

    Args:
        row: of `metrics.jsonl`.
        timing: of `timings.jsonl`.
        steps: of the run.
        width: norm and learning rate are left out where the line would be longer; None: any length.
    """
    parts = [f"step {row['step']}/{steps}", *_losses(row)]
    details = [] if row["grad_norm"] is None else [f"norm {row['grad_norm']:.3g}"]
    details.append(f"rate {row['learning_rate']:.3g}")
    rest = _timings(row, timing, steps)
    whole = "  ".join([*parts, *details, *rest])
    return whole if width is None or len(whole) <= width else "  ".join([*parts, *rest])


def _losses(row: dict[str, Any]) -> list[str]:
    if row["skipped"] and row.get("tokens") == 0:
        return ["no token counted"]
    loss = "loss not finite" if row["loss"] is None else f"loss {row['loss']:.4f}"
    if not row["skipped"]:
        return [loss]
    if row["loss"] is None:  # the gradient's norm is not what to name
        return [loss, "skipped"]
    norm = "norm not finite" if row["grad_norm"] is None else "too large to be squared"
    return [loss, f"gradient {norm}, skipped"]


def _timings(row: dict[str, Any], timing: dict[str, Any], steps: int) -> list[str]:
    parts = []
    if (speed := timing.get("tokens_per_second")) is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    if (share := timing.get("mfu")) is not None:
        parts.append(f"MFU {share:.0%}")
    if (seconds := timing.get("seconds_per_step")) is not None:
        minutes, rest = divmod(round(seconds * (steps - row["step"])), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02d}:{rest:02d} left")
    if (memory := timing.get("memory")) is not None:
        parts.append(f"{memory / 1e9:.2f} GB")
    return parts
