"""What a message tells the user to type is what it means, whatever a path is called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from diy_core.system.shell import command


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("-r", "./-r"),
        ("--out", "./--out"),
        ("-a b/it's", """'./-a b/it'"'"'s'"""),
        ("runs/-r", "runs/-r"),
        ("/-r", "/-r"),
        ("größe", "'größe'"),
        ("-", "-"),  # standard input or output
    ],
)
def test_a_path_is_written_so_that_it_is_no_option(path: str, written: str) -> None:
    assert command("parity", "inspect", Path(path), "--json", "-") == (
        f"parity inspect {written} --json -"
    )
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command(Path(path))}"], capture_output=True, text=True
    ).stdout
    assert Path(words.rstrip("\n")) == Path(path)


@pytest.mark.parametrize("name", [b"r\xff", b"-it's \\ a\xffb\xc3\xb6", b"$x`y\xfe\n"])
def test_a_path_that_is_not_utf8_is_written_as_its_bytes(name: bytes) -> None:
    line = command("printf", "%s", Path(os.fsdecode(name)))
    assert line.isascii()
    found = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert found.removeprefix(b"./") == name
