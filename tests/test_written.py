"""Files and directories are made, replaced and removed in one place, and elsewhere for a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_outside import PACKAGES, ROOT

# Methods and functions that make, rename, replace or remove files and directories.
WRITING = {
    *("mkdir", "makedirs", "mkdtemp", "mkstemp", "TemporaryDirectory", "TemporaryFile"),
    *("NamedTemporaryFile", "touch", "write_text", "write_bytes", "rename", "renames", "unlink"),
    *("rmdir", "removedirs", "rmtree", "symlink", "symlink_to", "link", "hardlink_to"),
    *("truncate", "ftruncate", "chmod", "chown", "copytree", "copyfile", "copy2", "move"),
    *("savefig", "tofile", "savez", "save_file", "open_memmap", "remove_tree"),
    "open_own",
}
OF_PATHS = {"replace", "remove", "save", "copy"}  # of many things; of `os`, `shutil`, `np` here
OWNERS = {"os", "shutil", "np", "numpy"}
NEW = "writes what is new, in a folder that its caller replaces whole"
OWN_RUN = "in a run that this process holds the lock of"
PARTS = "in a folder that is locked and bears a plan of ours"
TEMPORARY = "in a temporary folder of this process"
ALLOWED = {
    "diy_core/text/byte_tokenizer.py: (folder / _FILE).write_text": NEW,
    "diy_core/text/chat/templates.py: file.parent.mkdir": NEW,
    "diy_core/text/chat/templates.py: file.write_text": NEW,
    "diy_core/checkpoints/atomic.py: path.rename": "the one place",
    "diy_core/checkpoints/atomic.py: path.unlink": "the one place",
    "diy_core/checkpoints/atomic.py: remove_tree": "the one place",
    "diy_core/checkpoints/atomic.py: work.new.mkdir": "the one place",
    "diy_core/checkpoints/atomic.py: work.new.touch": "the one place",
    "diy_core/checkpoints/gguf/tokenizer.py: file.write_text": NEW,
    "diy_core/checkpoints/gguf/writer.py: tempfile.TemporaryDirectory": TEMPORARY,
    "diy_core/checkpoints/hf/writer.py: (here / MANIFEST).write_text": NEW,
    "diy_core/checkpoints/opening.py: tempfile.TemporaryDirectory": TEMPORARY,
    "diy_core/checkpoints/hf/safetensors_files.py: file.open": NEW,
    "diy_core/checkpoints/hf/side_files.py: (directory / name).parent.mkdir": NEW,
    "diy_core/checkpoints/hf/side_files.py: (directory / name).write_bytes": NEW,
    "diy_core/checkpoints/hf/side_files.py: (to / name).parent.mkdir": NEW,
    "diy_core/checkpoints/hf/side_files.py: (to / name).write_bytes": NEW,
    "diy_core/data/merge.py: (out / files.DESCRIPTION).write_text": NEW,
    "diy_core/data/merge.py: folder.mkdir": NEW,
    "diy_core/data/merge.py: path.open": NEW,
    "diy_core/data/parts.py: (folder / _PLAN).unlink": PARTS,
    "diy_core/data/parts.py: (folder / name).unlink": PARTS,
    "diy_core/data/parts.py: folder.mkdir": PARTS,
    "diy_core/data/parts.py: folder.rmdir": PARTS,
    "diy_core/data/parts.py: temporary.replace": PARTS,
    "diy_core/data/parts.py: temporary.write_bytes": PARTS,
    "diy_core/data/shard_files.py: archive.open": "an entry of an archive that is new",
    "diy_core/data/shard_files.py: self.path.unlink": PARTS,
    "diy_core/data/shard_files.py: temporary.open": PARTS,
    "diy_core/data/shard_files.py: temporary.replace": PARTS,
    "diy_core/data/shard_files.py: temporary.unlink": PARTS,
    "diy_core/errors.py: error.rename": "names in an error",
    "diy_core/training/checkpoints/files.py: (folder / MANIFEST).write_text": NEW,
    "diy_core/training/checkpoints/files.py: (folder / POSITION).write_text": NEW,
    "diy_core/training/log/json_lines.py: new.open": NEW,
    "diy_core/training/log/json_lines.py: open_own": OWN_RUN,
    "diy_core/training/log/json_lines.py: self._file.truncate": OWN_RUN,
    "diy_core/training/log/metrics.py: (self._path / name).open": OWN_RUN,
    "diy_core/training/log/metrics.py: path.mkdir": OWN_RUN,
    "diy_core/training/log/metrics.py: self._file.truncate": OWN_RUN,
    "diy_core/training/log/plot.py: figure.savefig": NEW,
    "diy_core/training/run/directory.py: file.write_text": NEW,
    "diy_core/training/run/directory.py: self.checkpoints.mkdir": OWN_RUN,
    "diy_core/training/run/directory.py: self.path.mkdir": (
        "the run, if there is none; its lock follows"
    ),
    "diy_core/training/run/lock.py: os.ftruncate": OWN_RUN,
    "diy_jax/orbax_store.py: (here / MANIFEST).write_text": NEW,
    "diy_jax/orbax_store.py: item.rename": NEW,
    "diy_jax/orbax_store.py: self._orbax.rmdir": NEW,
    "parity/convert/directories.py: (directory / MANIFEST).unlink": TEMPORARY,
    "parity/convert/directories.py: tempfile.TemporaryDirectory": TEMPORARY,
    "parity/faults/run.py: tempfile.TemporaryDirectory": TEMPORARY,
    "parity/report/plots.py: canvas.savefig": "in memory",
    "parity/report/table.py: file.write_text": "a stream, such as a pipe, which is not replaced",
    "parity/report/table.py: temporary.write_text": NEW,
    "parity/report/page.py: temporary.write_text": NEW,
    "parity/check/sweep.py: tempfile.TemporaryDirectory": TEMPORARY,
    "parity/convert/switch.py: (folder / 'checkpoints').mkdir": NEW,
    "parity/convert/switch.py: (folder / 'config.yaml').write_text": NEW,
    "parity/convert/switch.py: to.open": NEW,
    "parity/convert/switch.py: to.parent.mkdir": NEW,
    "parity/tracing/record/spool.py: tempfile.TemporaryFile": TEMPORARY,
}


def calls(file: Path) -> Iterator[str]:
    """The calls in a module that may write or remove, as they are written."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, last = called.rpartition(".")
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        words = [str(one.value) for one in given if isinstance(one, ast.Constant)]
        if last in WRITING or (last in OF_PATHS and owner in OWNERS):
            yield called
        elif last == "replace" and len(node.args) == 1 and not node.keywords:
            yield called  # of a path; that of a text takes two
        elif last == "open" and any(re.fullmatch("[wxa][bt+]*", word) for word in words):
            yield called


def of_package(package: str) -> set[str]:
    return {
        f"{path}: {call}"
        for file in sorted((ROOT / package).rglob("*.py"))
        if not (path := file.relative_to(ROOT).as_posix()).startswith("diy_core/system/")
        for call in calls(file)
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_writes_or_removes_by_itself(package: str) -> None:
    assert of_package(package) - set(ALLOWED) == set(), "use diy_core.checkpoints.atomic"


def test_nothing_is_allowed_that_is_not_done() -> None:
    assert set(ALLOWED) <= set().union(*map(of_package, PACKAGES))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("path.open('wb')", ["path.open"]),
        ("path.open('ab', buffering=0)", ["path.open"]),
        ("open(path, mode='x')", ["open"]),
        ("path.open('rb')", []),
        ("Checkpoint.open(path, config)", []),
        ("text.replace('a', 'b')", []),
        ("dataclasses.replace(one, step=2)", []),
        ("temporary.replace(path)", ["temporary.replace"]),
        ("os.replace(one, other)", ["os.replace"]),
        ("shutil.rmtree(path)", ["shutil.rmtree"]),
        ("names.remove(name)", []),
        ("(path / name).unlink()", ["(path / name).unlink"]),
    ],
)
def test_what_counts_as_writing(tmp_path: Path, code: str, expected: list[str]) -> None:
    (tmp_path / "x.py").write_text(code)
    assert list(calls(tmp_path / "x.py")) == expected
