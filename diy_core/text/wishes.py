"""What generation_config.json asks of whoever generates, and `generate` does not do.

It takes the most probable token, and says so; sampling (`do_sample`, `temperature`, ...) is not
part of it. Here are the keys by which transformers takes other tokens all the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diy_core.system.outside import is_there
from diy_core.text.tokenizer_files import read_json

# With the values that change nothing; null is one for all.
_CHANGES: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "repetition_penalty": (1,),
    "sequence_bias": ([], {}),
    "stop_strings": ([], ""),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
}
_LONGEST = 60  # characters of a value


def unheeded_wishes(path: Path) -> list[str]:
    """A note on the keys that ask for other tokens than the most probable ones, or none.

    They are those of generation_config.json, and where there is no such file, of config.json: so
    does transformers read them.

    Args:
        path: the directory of a model.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    name = "generation_config.json"
    if not is_there(path / name):
        name = "config.json"
    values = read_json(path / name)
    asked = [
        f"{key} {json.dumps(values[key], ensure_ascii=False):.{_LONGEST}}"
        for key, neutral in _CHANGES.items()
        if values.get(key) is not None and values[key] not in neutral
    ]
    if not asked:
        return []
    return [f"{name} asks for {', '.join(asked)}: passed over, as the most probable token is taken"]
