"""What the command lines of the two twins share: `diy-torch generate`, `diy-jax generate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diy_core.checkpoints.hf_directory import require_directory
from diy_core.errors import CheckpointError
from diy_core.generation import OnTokens
from diy_core.tokenizer import Tokenizer

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
DTYPES = ("float32", "bfloat16", "float64")

# generate(input_ids, max_new_tokens=, eos_token_id=, on_tokens=) of a loaded model.
Generate = Callable[..., Any]
# (directory, dtype name, device or None) -> Generate
Load = Callable[[str, str, str | None], Generate]


def build_parser(program: str, framework: str, devices: str) -> argparse.ArgumentParser:
    """The parser of one twin."""
    parser = argparse.ArgumentParser(
        prog=program, description=f"The {framework} twin of one Llama-style language model."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser(
        "generate",
        help="continue a prompt, or answer it as a chat",
        description="Continue a prompt with the most probable tokens, printed as they come. With "
        "--chat the prompt is the user's turn, put in the model's chat template.",
    )
    generate.add_argument("model", metavar="MODEL_DIR", help="a Hugging Face directory")
    generate.add_argument("prompt", metavar="PROMPT", help="- reads it from standard input")
    generate.add_argument("--chat", action="store_true", help="answer PROMPT as a chat")
    generate.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    generate.add_argument("--dtype", default="float32", choices=DTYPES)
    generate.add_argument("--device", help=f"{devices} (default: what the framework takes first)")
    generate.add_argument(
        "--json", action="store_true", help="print one object with prompt, text and token ids"
    )
    return parser


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None, load: Load) -> int:
    """Run one command; errors of the input are one message and exit code 2."""
    arguments = parser.parse_args(argv)
    try:
        _generate(arguments, load)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"{parser.prog} {arguments.command}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"\n{parser.prog} {arguments.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _generate(arguments: argparse.Namespace, load: Load) -> None:
    require_directory(arguments.model)
    tokenizer = Tokenizer.from_pretrained(Path(arguments.model))
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    ids = (
        tokenizer.encode_chat([{"role": "user", "content": prompt}])
        if arguments.chat
        else tokenizer.encode(prompt)
    )
    if not ids:
        raise ValueError("the prompt is empty: there is nothing to continue")
    generate = load(arguments.model, arguments.dtype, arguments.device)
    output = generate(
        [ids],
        max_new_tokens=arguments.max_new_tokens,
        eos_token_id=tokenizer.eos_token_ids or None,
        on_tokens=None if arguments.json else printer(tokenizer),
    )
    new = np.asarray(output.sequences)[0, len(ids) : int(output.lengths[0])].tolist()
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
            else:
                write(text)

    return on_tokens
