"""The command `generate`: a prompt in, its continuation out as it comes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diy_core.notes import add_strict, settle
from diy_core.system.arguments import positive
from diy_core.system.sources import Sources
from diy_core.system.standard_output import is_read

if TYPE_CHECKING:
    from diy_core.generation import OnTokens
    from diy_core.text.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16", "float64")

# generate(input_ids, max_new_tokens=, eos_token_id=, on_tokens=) of a loaded model.
Generate = Callable[..., Any]
# (directory, dtype name, device or None) -> Generate
Load = Callable[[str, str, str | None], Generate]


def add_generate(commands: Any, devices: str) -> None:
    """Add the command to the subparsers of a twin, which has such devices."""
    generate = commands.add_parser(
        "generate",
        help="continue a prompt, or answer it as a chat",
        description="Continue a prompt with the most probable tokens, printed as they come. With "
        "--chat the prompt is the user's turn, put in the model's chat template.",
    )
    generate.add_argument(
        "model",
        metavar="MODEL",
        help="a Hugging Face directory or a GGUF file; diy-jax also reads Orbax checkpoints",
    )
    generate.add_argument(
        "prompt",
        metavar="PROMPT",
        help="the text to continue; - reads it from standard input, without the line break at its "
        "end",
    )
    generate.add_argument("--chat", action="store_true", help="answer PROMPT as a chat")
    generate.add_argument(
        "--chat-template",
        metavar="NAME",
        help="with --chat: which of several templates (default: the model's default)",
    )
    generate.add_argument(
        "--max-new-tokens",
        type=positive,
        default=128,
        metavar="N",
        help="stop after N tokens, or before, where the model ends its text (default: 128)",
    )
    generate.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="what weights are kept and computed in (default: float32)",
    )
    generate.add_argument("--device", help=f"{devices} (default: what the framework takes first)")
    generate.add_argument(
        "--json",
        action="store_true",
        help="print one object with prompt, text and token ids (default: the text as it comes)",
    )
    add_strict(generate)


def generate(arguments: argparse.Namespace, load: Load, reads: Collection[str]) -> None:
    """Print what follows a prompt.

    Args:
        arguments: of the command.
        load: a model.
        reads: the kinds of checkpoints that it takes.

    Raises:
        ValueError: a prompt that is empty or too long, or a model that cannot be loaded.
    """
    from diy_core.checkpoints.kinds import kind_of, refuse_kind
    from diy_core.checkpoints.opening import tokenizer_of
    from diy_core.commands.prompt import read_prompt, require_short

    sources = Sources(arguments.model)
    with sources.recording():
        refuse_kind(Path(arguments.model), kind_of(arguments.model), reads)
        tokenizer = tokenizer_of(arguments.model)
    settle(arguments.model, tokenizer.wishes)
    if arguments.chat and not tokenizer.chat_templates:
        raise ValueError(
            f"{arguments.model} has no chat template: leave --chat out, or take a model that was "
            "tuned for chat"
        )
    if arguments.chat_template is not None and not arguments.chat:
        raise ValueError("--chat-template is for chats: give --chat too, or leave it out")
    prompt = read_prompt(arguments.prompt)
    if not prompt:
        raise ValueError("the prompt is empty: there is nothing to continue")
    if arguments.chat:
        turn = {"role": "user", "content": prompt}
        written = tokenizer.chat([turn], chat_template=arguments.chat_template)
        require_short(written, "the prompt, as the chat template writes it,")
        ids = tokenizer.encode(written, add_special_tokens=False)
    else:
        ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("the prompt holds nothing that the tokenizer has a token for")
    model = load(arguments.model, arguments.dtype, arguments.device)
    sources.require_unchanged()  # a model and the tokenizer of another would say anything
    output = model(
        [ids],
        max_new_tokens=arguments.max_new_tokens,
        eos_token_id=tokenizer.eos_token_ids or None,
        on_tokens=None if arguments.json else printer(tokenizer),
    )
    new = output.sequences[0, len(ids) : int(output.lengths[0])].tolist()
    if arguments.json:
        text = tokenizer.decode(new)
        print(json.dumps({"prompt": prompt, "text": text, "prompt_ids": ids, "new_ids": new}))
    else:
        print()


def printer(tokenizer: Tokenizer, write: Callable[[str], Any] | None = None) -> OnTokens:
    """A callback for `generate` that writes the first row's words as they come."""
    stream = tokenizer.stream()
    special = set(tokenizer.eos_token_ids)

    def on_tokens(tokens: Any, active: Any) -> None:
        if active[0] and int(tokens[0]) not in special:
            text = stream.push(int(tokens[0]))
            if write is None:
                print(text, end="", flush=True)
                if not is_read():
                    raise SystemExit(0)  # whoever reads has enough
            else:
                write(text)

    return on_tokens
