"""What the command lines of the two twins share: `diy-torch generate`, `diy-jax data`, ..."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from diy_core.arguments import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    ArgumentParser,
    Version,
    in_shell_words,
    positive,
)
from diy_core.ctrl_c import plain_ctrl_c
from diy_core.disk import described
from diy_core.errors import CheckpointError
from diy_core.notes import add_strict, notes_of_command
from diy_core.requirements import missing
from diy_core.standard_error import complain

if TYPE_CHECKING:
    from diy_core.generation import OnTokens
    from diy_core.tokenizer import Tokenizer
    from diy_core.training.command import Assemble, Verify

DTYPES = ("float32", "bfloat16", "float64")

# generate(input_ids, max_new_tokens=, eos_token_id=, on_tokens=) of a loaded model.
Generate = Callable[..., Any]
# (directory, dtype name, device or None) -> Generate
Load = Callable[[str, str, str | None], Generate]


@dataclasses.dataclass(frozen=True)
class Commands:
    """What a twin puts behind its command line.

    Attributes:
        load: a model to generate with.
        trainer: what `diy_core.training` drives.
        export: (run directory, step or None, output, overwrite) -> a line about what was written.
    """

    load: Load
    trainer: Callable[[], tuple[Assemble, Verify]]
    export: Callable[[str, int | None, str, bool], str]


# What the help of each program says: the framework, its devices, the packages of `--version`.
_TWINS = {
    "diy-torch": ("PyTorch", "cpu, gpu, cuda:1, ...", ("torch",)),
    "diy-jax": ("JAX/Flax", "cpu, gpu, tpu", ("jax", "flax")),
}


def build_parser(program: str) -> ArgumentParser:
    """The parser of `diy-torch` or `diy-jax`."""
    framework, devices, packages = _TWINS[program]
    parser = ArgumentParser(
        prog=program, description=f"The {framework} twin of one Llama-style language model."
    )
    parser.add_argument("--version", action=Version, const=packages)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands, devices)
    _add_data(commands)
    # It has a parser of its own.
    commands.add_parser(
        "train",
        help="train a model, from scratch or from a Hugging Face directory",
        add_help=False,
    )
    _add_export(commands)
    return parser


def _add_generate(commands: Any, devices: str) -> None:
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
    generate.add_argument("prompt", metavar="PROMPT", help="- reads it from standard input")
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
        help="of weights and computation (default: float32)",
    )
    generate.add_argument("--device", help=f"{devices} (default: what the framework takes first)")
    generate.add_argument(
        "--json",
        action="store_true",
        help="print one object with prompt, text and token ids (default: the text as it comes)",
    )
    add_strict(generate)


def _add_data(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="tokenise text for training",
        description="Tokenise text, JSONL or parquet once, into a directory of token files. A run "
        "that was interrupted goes on where it stopped.",
    )
    data.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="files (also .gz, .zst, .bz2 and .xz), directories, patterns, or builtin:pydoc (the "
        "help texts of Python)",
    )
    data.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    data.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="a Hugging Face directory, or bytes"
    )
    data.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the documents for DIR/validation, such as 0.01 (default: none)",
    )
    data.add_argument(
        "--separator",
        metavar="TEXT",
        help="what stands between the documents of a text file; \\n is a line break, so \\n\\n an "
        "empty line (default: each file is one document)",
    )
    data.add_argument(
        "--field",
        metavar="NAME",
        help="the column of JSONL and parquet that is learnt (default: text, messages, "
        "conversations, or prompt and completion, whichever a record holds)",
    )
    data.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each CPU)"
    )
    data.add_argument("--overwrite", action="store_true", help="replace prepared data at DIR")
    data.add_argument(
        "--json",
        action="store_true",
        help="print one object: what was written, read and passed over (default: lines)",
    )
    add_strict(data)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="a checkpoint of a training run as a Hugging Face directory",
        description="Write the weights of a checkpoint of a training run as a Hugging Face "
        "directory, with config.json and the tokenizer of the run.",
    )
    export.add_argument("run", metavar="RUN", help="the directory of the run")
    export.add_argument(
        "--step", type=int, metavar="N", help="of the checkpoint (default: the newest)"
    )
    export.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    export.add_argument("--overwrite", action="store_true", help="replace a model at DIR")


def run(parser: ArgumentParser, argv: Sequence[str] | None, load: Callable[[], Commands]) -> int:
    """Run one command; errors of the input are one message and exit code 2.

    Args:
        parser: of the twin.
        argv: what follows the program's name; None: of this process.
        load: imports the twin; called by commands that need it, once their options were read.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    training = words[:1] == ["train"]
    arguments = parser.parse_args(words[:1] if training else words)
    what = f"{parser.prog} {arguments.command}"
    try:
        if training:
            with plain_ctrl_c():  # until the run answers signals: there is nothing to save yet
                from diy_core.training import command  # it needs the `train` extra

                return command.run_late(what, words[1:], lambda: load().trainer())
        with notes_of_command(strict=getattr(arguments, "strict", False)):
            if arguments.command == "data":
                _prepare(arguments)
            elif arguments.command == "export":
                step, out = arguments.step, arguments.out
                print(load().export(arguments.run, step, out, arguments.overwrite))
            else:
                _generate(arguments, load)
    except (CheckpointError, ValueError) as error:
        complain(f"{what}: {in_shell_words(str(error), parser, arguments.command)}")
        return EXIT_BAD_INPUT
    except OSError as error:
        complain(f"{what}: {described(error)}")
        return EXIT_BAD_INPUT
    except ModuleNotFoundError as error:
        complain(missing(what, error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        complain(f"\n{what}: interrupted")
        return EXIT_INTERRUPTED
    return 0


def _generate(arguments: argparse.Namespace, load: Callable[[], Commands]) -> None:
    from diy_core.checkpoints.opening import tokenizer_of
    from diy_core.prompt import read_prompt

    tokenizer = tokenizer_of(arguments.model)
    if arguments.chat and not tokenizer.chat_templates:
        raise ValueError(
            f"{arguments.model} has no chat template: leave --chat out, or take a model that was "
            "tuned for chat"
        )
    if arguments.chat_template is not None and not arguments.chat:
        raise ValueError("--chat-template is for chats: give --chat too, or leave it out")
    prompt = read_prompt(arguments.prompt)
    ids = (
        tokenizer.encode_chat(
            [{"role": "user", "content": prompt}], chat_template=arguments.chat_template
        )
        if arguments.chat
        else tokenizer.encode(prompt)
    )
    if not ids:
        raise ValueError("the prompt is empty: there is nothing to continue")
    generate = load().load(arguments.model, arguments.dtype, arguments.device)
    output = generate(
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


def _prepare(arguments: argparse.Namespace) -> None:
    from diy_core.data import VALIDATION, TokenData, prepare  # other commands do without
    from diy_core.data.files import counted
    from diy_core.data.report import what_was_read

    data = prepare(
        arguments.sources,
        arguments.out,
        tokenizer=arguments.tokenizer,
        validation=arguments.validation,
        separator=arguments.separator,
        field=arguments.field,
        workers=(os.cpu_count() or 1) if arguments.workers is None else arguments.workers,
        overwrite=arguments.overwrite,
        progress=True,
    )
    assert data.report is not None
    held_out = data.path / VALIDATION
    parts = [data, *([TokenData(held_out)] if held_out.is_dir() else [])]
    if arguments.json:
        names = ("path", "documents", "tokens")
        written = [(str(part.path), len(part), part.tokens.size) for part in parts]
        told = [dict(zip(names, values, strict=True)) for values in written]
        validation = told[1] if told[1:] else None
        print(json.dumps({**told[0], "validation": validation, "report": data.report}))
        return
    print(what_was_read(data.report))
    for part in parts:
        documents, tokens = counted(len(part), "document"), counted(part.tokens.size, "token")
        print(f"{part.path}: {documents}, {tokens}")


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
