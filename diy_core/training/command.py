"""`diy-torch train` and `diy-jax train`: one config, one command line, one set of exit codes.

0     all steps are done (or those up to `stop_at`), or were done before
1     the run cannot go on: steps that are not finite, or no room for the last checkpoint
2     a config, data or files that cannot be used
130   Ctrl-C, 143 SIGTERM, 129 SIGHUP: the step was finished and saved; `--resume auto` goes on
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diy_core.system.arguments import EXIT_BAD_INPUT
from diy_core.system.disk import described
from diy_core.system.memory import too_little
from diy_core.system.standard_error import complain
from diy_core.training.options import UnknownOption, parse
from diy_core.training.start.option_errors import as_given

if TYPE_CHECKING:
    from diy_core.training.start.begin import Assemble
    from diy_core.training.start.restore import Verify

_SMALLER = "make batch_size or sequence_length smaller"


def run(program: str, argv: Sequence[str], assemble: Assemble, verify: Verify) -> int:
    """Run the command; returns the exit code.

    Args:
        program: such as `diy-jax train`.
        argv: what follows it.
        assemble: builds the twin's part.
        verify: reads a checkpoint of the twin.
    """
    return run_late(program, argv, lambda: (assemble, verify))


def run_late(program: str, argv: Sequence[str], load: Callable[[], tuple[Assemble, Verify]]) -> int:
    """`run` with a twin that `load` imports, for seconds, once the words of `argv` were read."""
    try:
        config, resume, device, strict, allowed = parse(program, argv)
        from diy_core.training.start.begin import (
            start,  # late: NumPy and Rich take longer than help
        )

        return start(
            program,
            config,
            load,
            resume=resume,
            device=device,
            strict=strict,
            allowed=allowed,
        )
    except UnknownOption as error:  # all options would be a page, which --help has
        complain(f"usage: {program} --config FILE [--OPTION VALUE ...]\n{program}: {error}")
        return EXIT_BAD_INPUT
    except ValueError as error:
        complain(f"{program}: {as_given(str(error), argv)}")
        return EXIT_BAD_INPUT
    except MemoryError as error:
        complain(f"{program}: {too_little(error, _SMALLER)}")
        return EXIT_BAD_INPUT
    except OSError as error:
        complain(f"{program}: {described(error)}")
        return EXIT_BAD_INPUT
