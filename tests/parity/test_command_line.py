"""The `parity` command: exit codes, records, and errors that say what to do."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

import parity.check.lines
import parity.check.model
import parity.demo
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.config import DIYConfig
from diy_torch import DIYForCausalLM
from parity.__main__ import build_parser, main
from parity.commands.checkpoints import size
from parity.random_models import small_configs, write_random_model
from tests.tiny_checkpoints import (
    DTYPES,
    EMBEDDING,
    HEAD,
    change_one_value,
    put,
    read,
    snapshot,
    weights,
)

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    return tmp_path / "model"


@pytest.mark.parametrize("command", ["check", "demo"])
def test_what_ends_before_anything_is_written_leaves_no_directory(
    command: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        assert (tmp_path / "new" / "place").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(parity.check.model, "check_model", interrupted)
    monkeypatch.setattr(parity.demo, "HFReader", interrupted)
    words = ["demo", "--model"] if command == "demo" else ["check"]
    option = "--out" if command == "demo" else "--report"
    assert main([*words, str(model), option, str(tmp_path / "new" / "place")]) == 130
    assert os.listdir(tmp_path) == ["model"]


def test_check_writes_the_record_and_the_table(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = parity.check.model.Plan(
        kinds=("logits", "blocks", "gradients", "decode"),
        sequence=40,
        decode_prompts=(5, 60),
        decode_positions=100,
        greedy_tokens=8,
    )
    monkeypatch.setattr(parity.check.model, "plan_for", lambda path: plan)
    arguments = ["check", str(model), "--dtype", "float64", "--device", "cpu", "--json", "-"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["passed"] is True
    assert set(record) == {"passed", "checks", "environment"}
    wanted = {"name", "dtype", "device", "compared", "value", "bound", "passed", "where", "control"}
    wanted |= {"tensors", "agreement", "reach", "vacuous"}
    assert all(set(check) == wanted for check in record["checks"])
    assert record["environment"]["versions"]["jax"]
    assert "The twins are equal" in err
    kinds = "chunked, ragged, kept, packed, context, rotations, embeddings, cache-gradients, "
    kinds += "step, optimizer, training"
    assert f"left out, since the model is large: {kinds}" in err
    # The same model with a bound that nothing can meet: the command says so and fails.
    monkeypatch.setattr(parity.check.lines, "ACTIVATION_BOUND", 1e-20)
    assert main([*arguments[:-1], str(model.parent / "record.json")]) == 1
    out, _ = capsys.readouterr()
    assert "The twins differ" in out
    assert json.loads((model.parent / "record.json").read_text())["passed"] is False


def test_checks_chooses_and_report_writes_both_files(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = model.parent / "new" / "report"
    arguments = ["check", str(model), "--dtype", "float64", "--checks", "ragged, logits"]
    arguments += ["--device", "cpu", "--report", str(report)]
    assert main(arguments) == 0
    out, _ = capsys.readouterr()
    assert f"report: {report}/report.html" in out
    assert "left out" not in out
    assert sorted(path.name for path in report.iterdir()) == ["certificate.json", "report.html"]
    certificate = json.loads((report / "certificate.json").read_text())
    command = shlex.split(certificate["command"])
    assert command[0] == "parity"
    assert vars(build_parser().parse_args(command[1:])) == vars(
        build_parser().parse_args(arguments)
    )
    (found,) = certificate["models"]
    names = ["logits", "ragged torch", "ragged flax"]
    assert [check["name"] for check in found["checks"]] == names
    assert found["name"] == str(model)
    # A failure is on the page too, which takes the place of the last.
    monkeypatch.setattr(parity.check.lines, "ACTIVATION_BOUND", 1e-20)
    assert main(arguments) == 1
    assert "The twins differ" in (report / "report.html").read_text()
    assert json.loads((report / "certificate.json").read_text())["passed"] is False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checks", "logits,speed"], "check 'speed' is not supported; choose one of logits, "),
        (["--checks", ","], "--checks names none, got ','; choose some of logits, blocks, "),
        (["--checks", " "], "--checks names none, got ' '; choose some of logits, blocks, "),
        (["--checks", "training", "--dtype", "bfloat16"], "nothing to check in bfloat16"),
        (["--report", "model/config.json"], "model/config.json"),
    ],
)
def test_a_choice_of_checks_that_cannot_be_had_is_one_message(
    options: list[str],
    words: str,
    model: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(model.parent)
    for arguments in (["check", "model", *options], ["check", *options]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("parity check: ")
        assert words in err
    assert os.listdir(model.parent) == ["model"]


def test_convert_says_what_it_wrote(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), str(model.parent / "orbax")]) == 0
    assert "Orbax checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere"], "nowhere"),
        (["convert", "nowhere", "there"], "does not exist"),
        (["demo", "--model", "nowhere"], "is not a directory"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"parity {arguments[0]}: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (
            "check",
            ["MODEL", "--dtype", "--json", "1e-12", "--checks NAME", "--report DIR", "ragged"],
        ),
        ("demo", ["--model", "--prompt", "--out"]),
        (
            "convert",
            [
                "SRC",
                "DST",
                "--to {hf,orbax,gguf}",
                "--dtype {float32,bfloat16,float16}",
                "--max-shard-size SIZE",
                "2GB",
                "default: 5GB",
                "--overwrite",
                "--no-verify",
                "--untie",
                "ends in .gguf",
                "SHA-256",
                "The kind of SRC is recognised",
                "Exits with 2",
            ],
        ),
        ("inspect", ["PATH", "--json FILE", "- is stdout", "--verify", "names in each world"]),
        ("diff", ["--json FILE", "worst first", "Exits with 1 if they differ, with 2 if one"]),
    ],
)
def test_help_teaches(command: str, parts: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as done:
        build_parser().parse_args([command, "--help"])
    assert done.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert len(out) > 300
    assert all(part in out for part in parts), [part for part in parts if part not in out]


# Sizes.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GB", 2 * 10**9),
        ("500MB", 500 * 10**6),
        ("1.5G", 1_500_000_000),
        ("100K", 100_000),
        ("2 tb", 2 * 10**12),
        ("0.001kb", 1),
        (" 1000000 ", 1_000_000),
        ("5B", 5),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0.5", "-1GB", "2GiB", "2PB", "GB", "1e9", "2,5GB", "9" * 400, "nan", "1 2"]
)
def test_bad_sizes_say_how_it_is_done(text: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as done:
        main(["convert", "a", "b", f"--max-shard-size={text}"])
    assert done.value.code == 2
    err = capsys.readouterr().err
    assert f"{text!r} is not a size; write 2GB, 500MB or 1000000" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["5", " 512 ", "999999"])
def test_a_small_number_without_a_unit_is_asked_about(text: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "a", "b", f"--max-shard-size={text}"])
    number = text.strip()
    assert f"did you mean {number}GB? (if not: {number}B)" in capsys.readouterr().err


# convert


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return put(tmp_path / "plain", weights())


def test_convert_says_in_one_line_what_it_did(
    plain: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plain.parent)
    total = sum(array.nbytes for array in weights().values()) / 1000
    did = rf"20 tensors, {total:.1f} kB in (less than )?\d+(\.\d)? s( \(\d+(\.\d)? \w+/s\))?"
    for arguments, expected in (
        (["plain", "out"], rf"out: Orbax checkpoint, {did}, read back and compared"),
        (
            ["out", "m.gguf"],
            rf"m\.gguf: GGUF file, {did}, read back and compared, source checked against its sums",
        ),
        (["m.gguf", "hf", "--no-verify"], rf"hf: Hugging Face directory, {did}, not read back"),
    ):
        assert main(["convert", *arguments]) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(expected + "\n", out), out
        plain_note = (
            "note: out: has no tokenizer.json, so the GGUF file has no tokenizer to run text"
        )
        assert err.startswith(plain_note) if "m.gguf" in arguments[1] else err == ""
        assert len(err.splitlines()) <= 1


def test_options_of_convert_arrive(plain: Path, capsys: Capture) -> None:
    """Each of them, by what it does."""
    head = weights(seed=1)[EMBEDDING]
    put(plain, weights() | {HEAD: head})
    out = plain.parent / "out"
    arguments = ["--to", "hf", "--dtype", "bfloat16", "--max-shard-size", "1.5K", "--untie"]
    assert main(["convert", str(plain), str(out), *arguments]) == 0
    assert len(list(out.glob("*.safetensors"))) > 3
    assert all(file.stat().st_size <= 1500 for file in out.glob("*.safetensors"))
    assert read(out)[HEAD].tobytes() == head.astype(DTYPES["bfloat16"]).tobytes()
    assert main(["convert", str(plain), str(out), "--to", "hf", "--untie", "--overwrite"]) == 0
    assert read(out)[HEAD].tobytes() == head.tobytes()
    assert len(list(out.glob("*.safetensors"))) == 1
    capsys.readouterr()
    change_one_value(out, EMBEDDING)
    assert main(["convert", str(out), str(out) + "2"]) == 2
    assert f"tensor {EMBEDDING} does not have the SHA-256" in capsys.readouterr().err
    assert main(["convert", str(out), str(out) + "2", "--no-verify"]) == 0


def test_notes_are_printed(plain: Path, capsys: Capture) -> None:
    put(plain, weights() | {HEAD: weights()[EMBEDDING].copy()})
    assert main(["convert", str(plain), str(plain.parent / "out")]) == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"note: {plain}: {HEAD} was dropped: it equals the embedding")
    assert err.count("\n") == out.count("\n") == 1


@pytest.mark.parametrize("command", ["convert", "inspect", "diff", "check", "trace"])
def test_strict_refuses_what_is_odd(plain: Path, command: str, capsys: Capture) -> None:
    table = {"model.rotary_emb.inv_freq": np.ones(2, np.float32)}
    put(plain, weights() | {HEAD: weights()[EMBEDDING].copy()} | table)
    out = plain.parent / "out"
    words = {"convert": [str(out)], "diff": [str(plain)]}.get(command, [])
    before = sorted(plain.parent.iterdir())
    assert main([command, str(plain), *words, "--strict"]) == 2
    printed, err = capsys.readouterr()
    assert printed == ""
    assert err.startswith(f"parity {command}: {plain}: ")
    assert "1 rotary table was dropped: it follows from the config" in err
    assert "(refused: strict)" in err
    assert sorted(plain.parent.iterdir()) == before


def test_a_note_that_comes_up_while_reading_leaves_nothing_behind(
    plain: Path, capsys: Capture
) -> None:
    put(plain, weights() | {HEAD: weights()[EMBEDDING].copy()})
    before = sorted(plain.parent.iterdir())
    assert main(["convert", str(plain), str(plain.parent / "out"), "--strict"]) == 2
    assert f"{HEAD} was dropped: it equals the embedding" in capsys.readouterr().err
    assert sorted(plain.parent.iterdir()) == before


def test_the_notes_of_both_sides_are_printed_once(plain: Path, capsys: Capture) -> None:
    table = {"model.rotary_emb.inv_freq": np.ones(2, np.float32)}
    put(plain, weights() | table)
    assert main(["diff", str(plain), str(plain), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["equal"]
    assert err.count("note: ") == err.count("\n") == 1


def test_without_a_terminal_it_is_quiet(plain: Path) -> None:
    """As a process, so that nothing of Orbax, JAX or the system comes through either."""
    done = run(["convert", "plain", "out"], plain.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("out: Orbax checkpoint, 20 tensors, ")
    assert done.stdout.count("\n") == 1
    done = run(["convert", "plain", "out"], plain.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TTY_COMPATIBLE": "0"}
    command = [sys.executable, "-m", "parity", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_on_a_terminal_there_is_a_bar(plain: Path) -> None:
    """What a terminal of 100 columns is sent: bytes of how many, twice, and nothing that stays."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "parity", "convert", "plain", "out"],
        cwd=plain.parent,
        env=environment,
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=child,
        text=True,
    )
    os.close(child)
    sent = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(parent, 65536):
            sent += piece
    os.close(parent)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.count("\n") == 1
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", sent.decode())
    total = f"{sum(array.nbytes for array in weights().values()) / 1000:.1f}"
    for what in ("writing", "verifying"):
        assert re.search(rf"{what} +━+ +{total}/{total} kB", text), text
    assert "Traceback" not in text
    assert b"\x1b[2K" in sent.split(b"\x1b[?25h")[-1]  # the bar is gone again


def test_errors_of_convert_are_one_message_and_change_nothing(
    plain: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain.parent
    monkeypatch.chdir(folder)
    for kind, name in (("orbax", "orbax"), ("gguf", "m.gguf")):
        assert main(["convert", "plain", name, "--to", kind]) == 0
    (folder / "thesis.gguf").write_text("years")
    (folder / "papers").mkdir()
    (folder / "papers" / "thesis.txt").write_text("years")
    (folder / "link").symlink_to("plain")
    put(folder / "wide", weights(dtype="float64"))
    put(folder / "large", {name: array * 1e30 for name, array in weights().items()})
    (put(folder / "nothing", {}) / "model.safetensors").unlink()
    capsys.readouterr()
    before = snapshot(folder)
    replace, thesis = "--overwrite", "papers/thesis.txt"
    for arguments, words in (
        (["gone", "x"], "gone: does not exist"),
        (["papers", "x"], "is neither a Hugging Face directory (config.json and safetensors) nor"),
        (["thesis.gguf", "x"], "is not a GGUF file: it begins with b'year'"),
        (["nothing", "x"], "has neither model.safetensors nor model.safetensors.index.json"),
        (["plain", "plain"], "plain: is the source itself"),
        (["plain", "./papers/../plain/", replace], "is the source itself"),
        (["link", "plain", replace, "--to", "hf"], "is the source itself"),
        (["m.gguf", "m.gguf", replace], "m.gguf: is the source itself"),
        (["plain", "gone/x"], "the parent directory"),
        (["plain", f"{thesis}/x"], "thesis.txt, which is a file: choose another place"),
        (["plain", "x.safetensors"], "x.safetensors: is named as a .safetensors file, and becomes"),
        (["plain", "x.json", "--to", "hf"], "becomes a Hugging Face directory: give the name of a"),
        (["m.gguf", "x.bin"], "x.bin: is named as a .bin file, and becomes a Hugging Face"),
        (["plain", "x.pt", "--to", "gguf"], "and becomes a GGUF file: end its name in .gguf"),
        (
            ["plain", "x", "--max-shard-size=2GB"],
            "(2000000000) is of Hugging Face directories, and",
        ),
        (
            ["plain", "x.gguf", "--max-shard-size=2GB"],
            "--max-shard-size (2000000000) is of Hugging",
        ),
        (["plain", "gone/x.gguf"], "does not exist"),
        (["plain", "orbax"], "exists already: --overwrite replaces it"),
        (["plain", "m.gguf"], "exists already: --overwrite"),
        (["orbax", "wide"], "exists already: --overwrite"),
        (["plain", "wide", replace], "which is not part of an Orbax checkpoint: choose another"),
        (["plain", "papers", replace], "holds thesis.txt, which is not part of an Orbax"),
        (["plain", "papers", "--to", "hf", replace], "is not empty and has no config.json: choose"),
        (["plain", "papers", "--to", "gguf", replace], "papers: is a directory"),
        (["plain", "orbax", "--to", "hf", replace], "has state/, as an Orbax checkpoint has"),
        (["plain", "papers", "--to", "hf"], "is not empty and has no config.json: choose"),
        (["plain", thesis, "--to", "orbax"], "exists and is not a directory: choose another"),
        (["plain", thesis, "--to", "hf"], "exists and is not a directory: choose another"),
        (["plain", "papers", "--to", "gguf"], "papers: is a directory, and a file is to be"),
        (["plain", thesis, "--to", "orbax", replace], "thesis.txt: exists and is not a directory"),
        (["orbax", thesis, "--to", "hf", replace], "exists and is not a directory"),
        (["orbax", "m.gguf", "--to", "hf", replace], "m.gguf is the name of a GGUF file: leave --"),
        (["orbax/state", "x"], "orbax/state: is a part of the Orbax checkpoint orbax: give that"),
        (["plain", "thesis.gguf", replace], "exists and is not a GGUF file: choose another"),
        (
            ["wide", "x.gguf"],
            "is float64, and llama.cpp runs float32, float16 and bfloat16: choose",
        ),
        (["large", "x", "--dtype", "float16"], "values too large for float16 (at most 6.55e+04)"),
    ):
        assert main(["convert", *arguments]) == 2, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("parity convert: ")
        assert words in err, err
    assert snapshot(folder) == before
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "a"], "the following arguments are required: DST"),
        (["convert", "a", "b", "--to", "onnx"], "must be one of hf, orbax, gguf, got 'onnx'"),
        (
            ["convert", "a", "b", "--dtype", "float64"],
            "must be one of float32, bfloat16, float16, got 'float64'",
        ),
        (["diff", "a"], "the following arguments are required: B"),
        (["inspect"], "the following arguments are required: PATH"),
    ],
)
def test_a_wrong_command_is_told_the_usage(
    arguments: list[str], words: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"usage: parity {arguments[0]}")
    assert words in err


def test_an_interrupt_leaves_nothing(
    plain: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HFWriter, "finish", interrupt)
    assert main(["convert", str(plain), str(plain.parent / "out"), "--to", "hf"]) == 130
    assert capsys.readouterr().err == "parity convert: interrupted\n"
    assert os.listdir(plain.parent) == ["plain"]


def test_where_a_record_cannot_be_written_is_said_before_the_work(
    plain: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain.parent
    monkeypatch.chdir(folder)
    (folder / "README.md").touch()
    monkeypatch.setattr("parity.check.model.check_model", None)
    for arguments, words in (
        (["check", "plain", "--report", "README.md"], "--report README.md: README.md is a file:"),
        (["check", "plain", "--report", "README.md/x"], "is a file: give a directory, or a new"),
        (["check", "plain", "--json", "."], "--json . is a directory: give a file, as record.json"),
        (["inspect", "plain", "--json", "gone/a"], "there is no directory gone: make it first"),
        (["diff", "plain", "plain", "--json", "README.md/a"], "there is no directory README.md:"),
        (["trace", "plain", "--json", str(folder)], "is a directory: give a file, as"),
        (["faults", "--json", "gone/x.json"], "there is no directory gone: make it first"),
    ):
        assert main(arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert (out, words in err) == ("", True), err
        assert len(err.splitlines()) == 1
    assert sorted(os.listdir(folder)) == ["README.md", "plain"]


@pytest.mark.model
def test_the_demo_runs_on_a_model_of_ones_own(
    smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DIYConfig(
        vocab_size=49152,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    DIYForCausalLM(config, seed=5).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(smollm2 / name, tmp_path / "model")
    out = tmp_path / "out"
    arguments = ["--model", str(tmp_path / "model"), "--max-new-tokens", "4", "--out", str(out)]
    assert main(["demo", *arguments]) == 0
    printed = capsys.readouterr().out
    for part in ("PyTorch", "JAX", "HF -> Orbax -> HF", "chat tokens", "The twins are equal"):
        assert part in printed
    assert json.loads((out / "check.json").read_text())["passed"] is True
    assert main(["demo", *arguments, "--json", "-"]) == 0
    printed, said = capsys.readouterr()
    assert json.loads(printed)["passed"] is True
    assert "The twins are equal" in said


@pytest.mark.parametrize("to", ["hf", "orbax"])
@pytest.mark.parametrize("content", ['{"port": 8080}', "port = 8080", "[]"])
def test_the_config_of_another_program_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, content: str
) -> None:
    source, there = put(tmp_path / "model", weights()), tmp_path / "there"
    there.mkdir()
    (there / "config.json").write_text(content)
    before = snapshot(tmp_path)
    arguments = ["convert", str(source), str(there), "--to", to, "--overwrite"]
    assert main(arguments) == 2
    assert "config.json: would be replaced, but no model lies beside it" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    (there / "config.json").unlink()
    assert main(arguments) == 0
    (there / "config.json").write_text(content)  # damaged, and still that of a model
    assert main(arguments) == 0


def test_without_enough_memory_a_command_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none_left(arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("parity.__main__.require_targets", none_left)
    assert main(["inspect", "model"]) == 2
    words = "parity inspect: not enough memory: end other programs, or give it less to do at once"
    assert capsys.readouterr().err == f"{words}\n"
