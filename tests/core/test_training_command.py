"""The command line, the examples, and what the terminal shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from diy_core.checkpoints.training_run import FORMS
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.training.command import run, run_late
from diy_core.training.config import TrainConfig, as_dict
from diy_core.training.log.progress import Clock, flops_per_token, line, measure_peak
from diy_core.training.options import build_parser, from_dict, parse
from diy_core.training.start.option_errors import as_given
from diy_core.training.state import Position, state_shapes
from tests.core.training_fake import FakeStore, Runner, assemble

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
TINY = next(path for path in EXAMPLES if path.name == "tiny.yaml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_config(path: Path) -> None:
    config, resume, device, strict, _ = parse("diy train", ["--config", str(path)])
    assert (resume, device, strict) == (False, None, False)
    assert config == from_dict(yaml.safe_load(path.read_text()), path)
    if isinstance(config.model, dict):
        model = DIYConfig.from_dict({"model_type": "llama"} | config.model)
        assert model.max_position_embeddings >= config.sequence_length
    assert config.optimizer.warmup_steps > 0
    assert config.optimizer.clip_norm == 1.0


def test_all_five_examples_are_there() -> None:
    names = {path.stem for path in EXAMPLES}
    assert names == {"tiny", "small", "smollm2", "smollm2-chat", "pretrain-1b"}


def test_the_command_line_goes_over_the_file() -> None:
    argv = ["--config", str(TINY), "--optimizer.learning_rate", "3e-4", "--steps=20"]
    argv += ["--model.hidden_size", "48", "--resume", "auto", "--device", "cpu"]
    argv += ["--strict"]
    config, resume, device, strict, _ = parse("diy train", argv)
    assert isinstance(config, TrainConfig)
    assert (config.optimizer.learning_rate, config.steps) == (3e-4, 20)
    assert isinstance(config.model, dict)
    assert config.model["hidden_size"] == 48
    assert config.model["vocab_size"] == 257
    assert (resume, device, strict) == (True, "cpu", True)


@pytest.mark.parametrize(("program", "other"), [("diy-torch", "diy-jax"), ("diy-jax", "diy-torch")])
def test_the_other_twins_run_is_refused_before_a_framework_is_loaded(
    program: str,
    other: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    form = next(form for form, writer in FORMS.items() if writer == other)
    (tmp_path / "run" / "checkpoints" / "00000050" / form).mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_bytes(TINY.read_bytes())

    def load() -> Any:
        raise AssertionError("the framework is loaded")

    words = ["--config", "run/config.yaml", "--resume", "auto"]
    assert run_late(f"{program} train", words, load) == 2
    assert capsys.readouterr().err == (
        f"{program} train: run/checkpoints/00000050: was written by {other}: continue it with "
        f"that, or `parity switch run run-{program.removeprefix('diy-')}` turns it into a run for "
        f"{program}\n"
    )
    with pytest.raises(AssertionError, match="the framework is loaded"):
        run_late(f"{other} train", words, load)


def test_what_is_missing_is_named_by_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse("diy train", ["--run-dir", "x", "--model", "y", "--steps", "3"])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "diy train: the config lacks --data.train, --batch-size, --sequence-length: give --config "
        "FILE, or an option for each\n"
    )


def test_without_options_the_config_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse("diy train", [])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith("diy train: the config lacks --run-dir, --model, --data.train, --steps")
    assert said.endswith(": give --config FILE, or an option for each\n")


@pytest.mark.parametrize("words", [["--run-dir", "."], ["--run_dir=."]])
def test_what_is_missing_is_found_in_the_run(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_bytes(TINY.read_bytes())
    with pytest.raises(SystemExit):
        parse("diy train", [*words, "--resume", "auto"])
    said = capsys.readouterr().err
    command = said.partition("those of the run are in config.yaml: ")[2]
    program, train, *options = shlex.split(command)
    assert (program, train) == ("diy", "train")
    assert parse("diy train", options)[1]  # it can be typed as it stands


def test_a_field_of_a_file_is_named_with_its_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(TINY.read_text().replace("clip_norm: 1.0", "beta1: 2"))
    assert run("diy train", ["--config", str(file)], assemble, FakeStore.verify) == 2
    assert "optimizer.beta1 must be less than 1, got 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("name one (field='text')", "name one (--data.field text)"),
        ("steps must be more", "--steps must be more"),
        ("of 3 steps must be", "of 3 steps must be"),
        ("separator must not be empty", "data.separator must not be empty"),
        ("the steps (those of a run)", "the steps (those of a run)"),
    ],
)
def test_an_error_of_training_names_what_was_given(error: str, words: str) -> None:
    assert as_given(error, ["--steps", "3"]) == words


def test_either_spelling_of_an_option_will_do(capsys: pytest.CaptureFixture[str]) -> None:
    configs, hidden = [], ["--model.hidden-size=48"]
    for words in (
        ["--batch-size", "8", "--optimizer.learning-rate=3e-4", "--model.hidden-size", "48"],
        ["--batch_size", "8", "--optimizer.learning_rate=3e-4", "--model.hidden_size", "48"],
        ["--batch_size=8", "--optimizer.learning-rate", "3e-4", "--model.hidden-size=48"],
        ["--run-dir=-my run", "--batch-size=8", "--optimizer.learning-rate=3e-4", *hidden],
    ):
        config = parse("diy train", ["--config", str(TINY), *words])[0]
        assert isinstance(config.model, dict)
        configs.append((config.batch_size, config.optimizer, config.model["hidden_size"]))
        for print_config in ("--print-config", "--print_config"):
            with pytest.raises(SystemExit) as left:
                parse("diy train", ["--config", str(TINY), *words, print_config])
            assert left.value.code == 0
            assert "batch_size: 8\n" in capsys.readouterr().out
    assert configs[0] == configs[1] == configs[2]
    assert (configs[0][0], configs[0][2]) == (8, 48)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizer.lerning_rate", "1"], "did you mean --optimizer.learning-rate?"),
        (["--learning_rate", "1"], "did you mean --optimizer.learning-rate?"),
        (["--stpes=1"], "--stpes is not known: did you mean --steps?"),
        (["--run-dri", "x"], "--run-dri is not known: did you mean --run-dir?"),
        (["--qqqq", "x"], "--qqqq is not known: diy train --help lists the options"),
        (["tiny.yaml"], "tiny.yaml belongs to no option: did you mean --config tiny.yaml?"),
        (["tiny", "x"], "tiny x belongs to no option: diy train --help lists the options"),
        (["my own.yaml"], "my own.yaml belongs to no option: did you mean --config 'my own.yaml'?"),
        (["--confg", "x"], "--confg is not known: did you mean --config?"),
        (["--config="], "--config needs a file, got ''"),
        (["--config", ""], "--config needs a file, got ''"),
        (["--config"], "diy train: --config needs a value\n"),
        (["--device", " "], "--device must be a text that is not empty, got ' '"),
        (["--device="], "--device must be a text that is not empty, got ''"),
        (["--print-config=all"], "--print-config must stand alone, or be skip_default or skip_uns"),
        (["--dtype", "flaot32"], ", float64, got flaot32: did you mean float32?\n"),
        (["--optimizer.schedule", "cosin"], "got cosin: did you mean cosine?\n"),
        (["--optimizer.beta1", "2"], "diy train: --optimizer.beta1 must be less than 1, got 2.0\n"),
        (["--optimizer.lr", "1"], "did you mean --optimizer.learning-rate?"),
        (["--steps", "many"], "diy train: --steps must be an integer, got many\n"),
        (["--steps", "1000.0"], "diy train: --steps must be an integer, got 1000.0\n"),
        (["--steps", "null"], "diy train: --steps must be an integer, got None\n"),
        (["--stop_at", "x"], "--stop-at must be an integer or null, got x"),
        (["--optimizer.beta1", "x"], "--optimizer.beta1 must be a number, got x"),
        (["--remat", "perhaps"], "--remat must be true or false, got perhaps"),
        (["--dtype", "float16"], "--dtype must be one of float32, bfloat16, float64, got float16"),
        (["--optimizer", "null"], "--optimizer must be a YAML file of options such as --optimiz"),
        (
            ["--optimizer.learning_rate", "1e38"],
            "--optimizer.learning-rate must be at most 3.4e+37",
        ),
        (["--config", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["--config", "."], "--config: . is a directory: give one file"),
        (["--loss.z_loss", "-1", "--print_config"], "--loss.z-loss must be at least 0"),
        (["--seed", "null", "--print_config"], "--seed must be an integer, got None"),
        (["--resume", "always"], "--resume must be auto, or stand alone, got 'always': it goes on"),
        (["--device"], "diy train: --device needs a value\n"),
        (["--steps", "3"], "optimizer.warmup_steps (10) must not be more than --steps (3)\n"),
        (
            ["--optimizer.warmup_steps=101"],
            "diy train: --optimizer.warmup-steps (101) must not be more than steps (100)\n",
        ),
        (["--batch-size", "3"], "--batch-size (3) must be a multiple of accumulation_steps (2)"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line_or_two(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run("diy train", ["--config", str(TINY), *argv], assemble, FakeStore.verify)
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert ("usage: diy train --config FILE" in said) == (" is not known" in said)
    assert len(said.splitlines()) <= 3


@pytest.mark.parametrize(
    ("leads", "words"),
    [("two.yaml", "which leads in a circle"), ("nowhere", "which does not exist")],
)
def test_a_config_that_is_a_link_to_nothing_says_where_it_leads(
    leads: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one.yaml"
    one.symlink_to(leads)
    (tmp_path / "two.yaml").symlink_to("one.yaml")
    try:
        code = run("diy train", ["--config", str(one)], assemble, FakeStore.verify)
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    assert code == 2
    said = capsys.readouterr().err
    assert said == f"diy train: {one}: is a link to {leads}, {words}\n"


def test_a_wrong_name_in_a_file_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(TINY.read_text())
    for part, name, meant in (
        (values, "sequence_lenght", "sequence_length"),
        (values["optimizer"], "warmup", "optimizer.warmup_steps"),
    ):
        part[name] = 3
        file = tmp_path / "wrong.yaml"
        file.write_text(yaml.safe_dump(values))
        assert run("diy train", ["--config", str(file)], assemble, FakeStore.verify) == 2
        assert f"{name} is not known: did you mean {meant}?" in capsys.readouterr().err
        del part[name]


IN_A_FILE: list[tuple[str, str, list[str], str]] = [
    ("steps: 100", "steps: abc", [], "{line}steps must be an integer, got abc"),
    ("steps: 100", "steps: -3", [], "{line}steps must be a positive integer, got -3"),
    ("steps: 100", "steps: abc", ["--steps", "3"], "{line}steps must be an integer, got abc"),
    ("steps: 100", "steps: abc", ["--steps=x"], "{line}steps must be an integer, got abc"),
    ("steps: 100", "steps: 10", ["--steps", "x"], "--steps must be an integer, got x"),
    ("steps: 100", "steps: -3", ["--steps", "-4"], "--steps must be a positive integer, got -4"),
    ("rate: 1.0e-3", "rate: fast", [], "{line}optimizer.learning_rate must be a number, got fast"),
    ("warmup_steps: 10", "warmup_steps: 101", [], "{line}optimizer.warmup_steps (101) must not be"),
    ("hidden_size: 96", "hidden_size: nine", [], "{line}model: hidden_size must be a positive"),
    ("validation: 0.02", "validation: 2", [], "{line}data.validation must be a share"),
    ("hidden_size: 96", "hidden_size: 96", ["--model.hidden-size=x"], "model: hidden_size must be"),
]


@pytest.mark.parametrize(("old", "new", "words", "message"), IN_A_FILE)
def test_a_wrong_value_in_a_file_is_refused_with_its_line(
    old: str,
    new: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And one of the command line as of that option, whatever the file says."""
    text, file = TINY.read_text(), tmp_path / "wrong.yaml"
    file.write_text(text.replace(old, new))
    number = text[: text.index(old)].count("\n") + 1
    try:
        code = run("diy train", ["--config", str(file), *words], assemble, FakeStore.verify)
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("diy train: " + message.format(line=f"{file}, line {number}: "))


@pytest.mark.parametrize("part", ["optimizer", "loss", "data"])
@pytest.mark.parametrize("value", [None, 3, "fast"])
def test_a_part_of_a_file_that_holds_no_names_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, value: object
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(TINY.read_text()) | {part: value}))
    assert run("diy train", ["--config", str(file)], assemble, FakeStore.verify) == 2
    said = capsys.readouterr().err
    assert f"{file}: {part} must hold names and values, such as " in said
    assert f"got {value!r}" in said
    with pytest.raises(ValueError, match=f"{part} must hold names and values"):
        from_dict(yaml.safe_load(file.read_text()))


def test_a_name_that_is_given_twice_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, number, name in (
        ("steps: 5\nseed: 1\nsteps: 6\n", 3, "steps"),
        ("optimizer: {eps: 1.0e-6, beta1: 0.5, eps: 1.0e-5}\n", 1, "eps"),
    ):
        file = tmp_path / "twice.yaml"
        file.write_text(text)
        assert run("diy train", ["--config", str(file)], assemble, FakeStore.verify) == 2
        said = capsys.readouterr().err
        assert f"{file}, line {number}: {name} is given twice: keep one of them" in said
    file.write_text("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: [*a, {<<: *a, <<: *b}]\n")
    assert run("diy train", ["--config", str(file)], assemble, FakeStore.verify) == 2
    assert "a is not known" in capsys.readouterr().err


def test_a_run_that_was_moved_is_the_directory_of_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Runner(tmp_path / "old")
    assert old(stop_at=5) == 0
    moved = (tmp_path / "old").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for words, where in (
        (["--config", "moved/config.yaml", "--resume", "auto"], "moved"),
        (["--config", str(moved / "config.yaml"), "--resume=auto"], str(moved)),
        (["--config", "moved/config.yaml", "--resume", "auto", "--run_dir", "x"], "x"),
        (["--config", "moved/config.yaml", "--run_dir=x", "--resume", "auto"], "x"),
        (["--config", "moved/config.yaml"], str(tmp_path / "old")),
    ):
        assert parse("diy train", words)[0].run_dir == where
    monkeypatch.chdir(moved)
    words = ["--config", "config.yaml", "--resume", "auto"]
    assert parse("diy train", words)[0].run_dir == "."
    assert run("diy train", [*words, "--stop_at=null"], assemble, FakeStore.verify) == 0
    assert (moved / "checkpoints" / "00000012").is_dir()
    assert not (tmp_path / "old").exists()
    other = tmp_path / "config.yaml"  # in no run directory
    other.write_text((moved / "config.yaml").read_text())
    words = ["--config", str(other), "--resume", "auto"]
    assert parse("diy train", words)[0].run_dir == "."
    monkeypatch.chdir(tmp_path)
    words = ["--config", "moved/config.yaml", "--resume", "auto"]
    for gone in ("checkpoints", "metrics.jsonl"):  # either of them makes it a run directory
        kept = (moved / gone).rename(tmp_path / gone)
        assert parse("diy train", words)[0].run_dir == "moved"
        kept.rename(moved / gone)


def test_resume_without_a_value_means_auto() -> None:
    for words in (["--resume"], ["--resume", "auto"], ["--resume=auto"]):
        assert parse("diy train", ["--config", str(TINY), *words])[1]
        assert parse("diy train", [*words, "--config", str(TINY)])[1]


def test_a_value_that_ends_like_the_name_of_a_part_is_a_value() -> None:
    config = parse("diy train", ["--config", str(TINY), "--run_dir", "mydata"])[0]
    assert config.run_dir == "mydata"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.hidden_size", "256"], "model: hidden_size (256) is not a multiple of num_att"),
        (["--model.hiden_size", "96"], "model.hiden_size is not known: did you mean model.hidd"),
        (["--sequence_length", "512"], "must not be more than the model's max_position_embeddings"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    run_dir = tmp_path / "run"
    start = ["--config", str(TINY), "--run_dir", str(run_dir), *words]
    for more in ([], ["--print_config"]):
        assert run("diy train", [*start, *more], assemble, FakeStore.verify) == 2
        printed = capsys.readouterr()
        assert (printed.out, message in printed.err) == ("", True)
        assert not run_dir.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("model", "model"), ("steps", "steps"), ("seed", "seed must be an integer")],
)
def test_what_could_not_be_run_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(TINY.read_text()) | {name: None}))
    words = ["--config", str(file), "--print_config"]
    try:
        code = run("diy train", words, assemble, FakeStore.verify)
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert message in printed.err


def test_the_printed_config_can_be_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("diy train", ["--config", str(TINY), "--seed", "7", "--print_config"])
    assert caught.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    printed, *_ = parse("diy train", ["--config", str(file)])
    assert printed == parse("diy train", ["--config", str(TINY), "--seed", "7"])[0]


def test_the_flops_of_a_token_are_counted_by_hand() -> None:
    config = DIYConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    layer = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 12
    assert flops_per_token(config, 16) == 6 * (2 * layer + 8 * 11) + 12 * 2 * 8 * 16


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, 4.0, 10.0, 12.0, 20.0, 23.0, 30.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert measure_peak(lambda: None, 100.0, seconds=25.0) == 50.0
    times = iter([0.0, 1.0, 5.0, 6.0])  # one is timed in any case
    assert measure_peak(lambda: None, 100.0, seconds=0.5) == 25.0


def test_the_share_of_the_peak_is_speed_times_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 14.0, 14.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Clock(positions=100, flops_per_token=6.0, matmul_peak=3000.0)
    clock.reset(5)
    timing = clock.read(7)
    assert timing == {"seconds_per_step": 2.0, "tokens_per_second": 50.0, "mfu": 0.1}
    row = {"step": 7, "loss": 1.5, "skipped": False, "grad_norm": 0.25, "learning_rate": 1e-3}
    rest = "50 tokens/s  MFU 10%  0:01:00 left  2.00 GB"
    short = f"step 7/37  loss 1.5000  {rest}"
    long = f"step 7/37  loss 1.5000  norm 0.25  rate 0.001  {rest}"
    assert line(row, timing | {"memory": 2e9}, 37) == long
    assert line(row, timing | {"memory": 2e9}, 37, len(long)) == long
    assert line(row, timing | {"memory": 2e9}, 37, len(long) - 1) == short


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [
        (None, None, "loss not finite  skipped"),
        (1.5, None, "loss 1.5000  gradient norm not finite, skipped"),
        (None, 2.0, "loss not finite  skipped"),
        (1.5, 1e20, "loss 1.5000  gradient too large to be squared, skipped"),
    ],
)
def test_what_made_a_step_skip_is_named(loss: Any, norm: Any, words: str) -> None:
    row = {"step": 7, "loss": loss, "skipped": True, "grad_norm": norm, "learning_rate": 1e-3}
    assert line(row, {}, 9, 10) == f"step 7/9  {words}"


def run_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory of the examples: that of the repository, in which tiny was run."""
    (folder / "examples").symlink_to(TINY.parent)
    (folder / "runs/tiny/checkpoints").mkdir(parents=True)
    (folder / "runs/tiny/config.yaml").write_text(TINY.read_text())
    monkeypatch.chdir(folder)


def test_the_help_ends_with_examples_that_can_be_run_and_explains_what_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("diy train", ["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    examples = said[said.index("\nexamples:\n") :].splitlines()[2:]
    assert len(examples) == 3
    run_directory(tmp_path, monkeypatch)
    for words in examples:
        program, command, *options = shlex.split(words)
        assert (program, command) == ("diy", "train")
        parse("diy train", options)  # which refuses what could not be run
    plain = " ".join(said.split())
    assert "--model.NAME VALUE one entry of the model's config.json" in plain
    assert (
        said.index("\n  --model MODEL ")
        < said.index("\n  --model.NAME ")
        < said.index("\n  --steps")
    )
    assert "null takes the model's (default: null)" in plain
    assert "(type" not in plain
    assert not re.search("None|True|False", said)
    assert "[--resume [auto]]" in plain
    assert plain.count("--model.NAME") == 1
    assert "a directory or a pattern of such files, or a directory of prepared tokens" in plain
    assert "refuse a model or tokenizer that is odd" in plain
    assert "129 (SIGHUP)" in plain


@pytest.mark.parametrize("part", ["data", "optimizer", "loss"])
def test_the_help_shows_a_line_of_the_file_that_a_group_of_options_takes(
    part: str, tmp_path: Path
) -> None:
    plain = " ".join(build_parser("diy train").format_help().split())
    (example,) = re.findall(
        rf" --{part} FILE a YAML file of the options of this group, a line of it such as "
        r"'([^']+)' \(default: what --config says\)",
        plain,
    )
    (tmp_path / "part.yaml").write_text(f"{example}\n")
    words = ["--config", str(TINY), f"--{part}", str(tmp_path / "part.yaml")]
    ((name, value),) = yaml.safe_load(example).items()
    assert as_dict(parse("diy train", words)[0])[part][name] == value
    assert as_dict(parse("diy train", words[:2])[0])[part][name] != value


def test_a_state_has_three_arrays_for_every_weight() -> None:
    config = DIYConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    shapes = state_shapes(config)
    assert len(shapes) == 3 * (1 + 9 + 1)
    for kind in ("model", "mean", "square"):
        assert shapes[f"{kind}/model.embed_tokens.weight"] == (11, 8)
        assert shapes[f"{kind}/model.layers.0.mlp.down_proj.weight"] == (8, 12)


def test_a_position_survives_json_and_damage_is_named() -> None:
    position = Position(seed=3, step=9, tokens=100, skipped_steps=2, data={"next": 9})
    assert Position.from_json(position.to_json(), "here") == position
    assert position.updates == 7
    with pytest.raises(
        ValueError, match=r"here: step must be an integer of at least 0, .* got True"
    ):
        Position.from_json(position.to_json() | {"step": True}, "here")
    with pytest.raises(ValueError, match="here: holds no position"):
        Position.from_json({"step": 3}, "here")


def test_a_run_goes_where_nothing_else_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = Runner(tmp_path / "papers")
    runner.path.mkdir()
    notes = runner.path / "notes.md"
    for name in ("notes.md", "config.yaml", "data"):  # the last are also names in a run
        (runner.path / name).write_text("mine")
        argv = ["--config", str(TINY), "--run-dir", str(runner.path)]
        assert run("diy train", argv, assemble, FakeStore.verify) == 2
        said = capsys.readouterr().err
        assert f"exists, is not empty (it has {name}) and is not a training run: choose" in said
        assert "parameters" not in said  # nothing was begun, and no framework loaded
        with pytest.raises(CheckpointError, match="choose another run_dir"):
            runner()
        assert [item.name for item in runner.path.iterdir()] == [name]
        (runner.path / name).unlink()
    for place in (notes, notes / "run"):
        notes.touch()
        with pytest.raises(CheckpointError, match="is a file, and a run needs a directory"):
            Runner(place)()
    notes.unlink()
    (runner.path / ".lock").touch()  # as a start that was killed leaves it
    (runner.path / "checkpoints").mkdir()
    (runner.path / ".config.yaml.tmp-0123abcd").touch()
    (runner.path / "train.log").write_text("opened by the shell")
    assert runner(stop_at=1) == 0


def test_resuming_nothing_is_said_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "run.yaml"
    written.write_text(yaml.safe_dump(as_dict(Runner(tmp_path / "run").config())))
    argv = ["--config", str(written), "--resume", "auto", "--stop-at", "2"]
    for nothing in (True, False):
        assert run("diy train", argv, assemble, FakeStore.verify) == 0
        said = capsys.readouterr().err
        words = f"nothing to resume in {tmp_path / 'run'}: a new run begins\n"
        assert said.startswith(words) == nothing
        assert said.count("nothing to resume") == nothing


def test_a_batch_that_no_memory_holds_is_refused_in_one_line(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runner.path.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(as_dict(runner.config())))
    words = ["--config", str(config), "--batch-size", str(10**15)]
    assert run("diy-torch train", words, assemble, lambda path, model: None) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("diy-torch train: not enough memory (Unable to allocate ")
    assert said.endswith("): make batch_size or sequence_length smaller")
