"""llama.cpp as a witness: it runs what is exported, and writes the same words.

Left out of the ordinary run, since llama.cpp compiles for minutes: `make witnesses`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diy_jax
import diy_torch
from diy_core.text.tokenizer import Tokenizer
from parity.convert.formats import convert

pytestmark = [pytest.mark.witnesses, pytest.mark.model]
NEW = 64
PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
    "List three uses of a paper clip.",
    "What is 12 + 30?",
]
_GGML_F32 = 0


def open_llama(path: Path) -> Any:
    import llama_cpp

    return llama_cpp.Llama(
        str(path),
        n_ctx=512,
        n_threads=2,
        verbose=False,
        logits_all=True,
        type_k=_GGML_F32,  # a cache in float16 would be another model
        type_v=_GGML_F32,
    )


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def exported(request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: Any) -> Any:
    """The dtype, the exported file, and the directory that it came from in that dtype."""
    folder = tmp_path_factory.mktemp("gguf")
    convert(smollm2, folder / "model.gguf", dtype=request.param)
    convert(folder / "model.gguf", folder / "hf", to="hf")
    return request.param, folder / "model.gguf", folder / "hf"


def test_llama_cpp_splits_text_as_we_do(exported: Any, smollm2: Path) -> None:
    llama, tokenizer = open_llama(exported[1]), Tokenizer.from_pretrained(smollm2)
    texts = [*PROMPTS, "  two  spaces\n\nand 1234 digits, naïve café ☕ 漢字", "it's we'll I'd"]
    for text in texts:
        assert llama.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text)
    chat = tokenizer.chat([{"role": "user", "content": "Hi"}])
    ids = llama.tokenize(chat.encode(), add_bos=False, special=True)
    assert ids == tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert llama.token_eos() in tokenizer.eos_token_ids
    assert llama.metadata["tokenizer.chat_template"] == tokenizer.chat_template


def test_llama_cpp_writes_the_same_words(exported: Any) -> None:
    dtype, file, directory = exported
    llama, tokenizer = open_llama(file), Tokenizer.from_pretrained(directory)
    # llama.cpp computes float16 and bfloat16 weights in a mixture of its own; in float32 both
    # compute the same function of those weights.
    model = diy_torch.DIYForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]
    ids, mask = tokenizer.batch(prompts)
    out = diy_torch.generate(
        model, ids, mask, max_new_tokens=NEW, eos_token_id=tokenizer.eos_token_ids
    )
    flax, params = diy_jax.DIYForCausalLM.from_pretrained(directory)
    other = diy_jax.generate(
        flax, params, ids, mask, max_new_tokens=NEW, eos_token_id=tokenizer.eos_token_ids
    )
    np.testing.assert_array_equal(np.asarray(out.sequences), np.asarray(other.sequences))
    for row, prompt in enumerate(prompts):
        ours = np.asarray(out.sequences)[row, len(prompt) : int(out.lengths[row])].tolist()
        llama.reset()
        theirs: list[int] = []
        for token in llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
            theirs.append(int(token))
            if token in tokenizer.eos_token_ids or len(theirs) == NEW:
                break
        agreed = next((i for i in range(min(map(len, (ours, theirs)))) if ours[i] != theirs[i]), -1)
        if dtype == "float32" or agreed == -1:
            assert theirs == ours, PROMPTS[row]
            continue
        # Where rounding decides between two words, they must have been close.
        logits = model(torch.tensor([prompt + ours[:agreed]]))[0, -1].detach()
        gap = abs(float(logits[ours[agreed]] - logits[theirs[agreed]]))
        assert gap < 0.05 * float(logits.std()), (PROMPTS[row], agreed, gap)


def test_llama_cpp_computes_the_same_logits(exported: Any) -> None:
    dtype, file, directory = exported
    llama, tokenizer = open_llama(file), Tokenizer.from_pretrained(directory)
    model = diy_torch.DIYForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = tokenizer.encode("The sea is deep and the sky is blue, said the old man to the boy.")
    llama.reset()
    llama.eval(ids)
    theirs = np.array(llama.scores[: len(ids)], dtype=np.float64)
    ours = model(torch.tensor([ids]))[0].detach().double().numpy()
    error = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
    print(f"{dtype}: relative L2 of llama.cpp's logits {error:.1e}")
    assert error < {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
