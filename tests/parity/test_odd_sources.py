"""Something else in place of a file of a checkpoint: refused by its name, and waited for never."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from diy_core.errors import CheckpointError
from diy_core.text.tokenizer import Tokenizer
from parity.convert.formats import convert, open_checkpoint
from tests.odd_files import ODD_FILES, as_nobody, put_odd_file
from tests.oracles import tiny
from tests.tiny_checkpoints import put, put_tokenizer, weights

CONFIG = tiny(vocab_size=270)
OF_MODELS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "diy_manifest.json",
)
OF_TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json"),
)
CARRIED = ("tokenizer.model", "vocab.json", "merges.txt", "NOTICE.txt")
OF_ORBAX = (
    *("_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt", "state/d/new"),
    *("config.json", "diy_manifest.json", "tokenizer.json"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put_tokenizer(put(folder / "hf", weights(CONFIG), CONFIG))
    convert(folder / "hf", folder / "orbax")
    return folder


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    def fail(_: int, __: FrameType | None) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", [*OF_MODELS, *OF_TOKENIZERS, *CARRIED])
def test_no_file_of_a_model_is_left_out_unread(
    models: Path, tmp_path: Path, name: str, kind: str
) -> None:
    source = Path(shutil.copytree(models / "hf", tmp_path / "source"))
    put_odd_file(source / name, kind)
    with pytest.raises(CheckpointError, match=f"source/{name}: {ODD_FILES[kind]}"):
        convert(source, tmp_path / "out", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", OF_TOKENIZERS)
def test_a_tokenizer_reads_all_of_its_files(
    models: Path, tmp_path: Path, name: str, kind: str
) -> None:
    source = Path(shutil.copytree(models / "hf", tmp_path / "source"))
    if name == "chat_template.json":  # which is read where there is no other
        (source / "chat_template.jinja").unlink(missing_ok=True)
    put_odd_file(source / name, kind)
    with pytest.raises(CheckpointError, match=f"source/{name}: {ODD_FILES[kind]}"):
        Tokenizer.from_pretrained(source)


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", OF_ORBAX)
def test_orbax_opens_regular_files_alone(
    models: Path, tmp_path: Path, name: str, kind: str
) -> None:
    source = Path(shutil.copytree(models / "orbax", tmp_path / "source"))
    if (name, kind) == ("state/d/new", "directory"):
        return  # as Orbax may have them
    put_odd_file(source / name, kind)
    with pytest.raises(CheckpointError, match=ODD_FILES[kind]) as refused:
        convert(source, tmp_path / "out", to="hf")
    assert str(refused.value).startswith(f"{source / name}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_gguf_file_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    put_odd_file(tmp_path / "m.gguf", kind)
    with pytest.raises(CheckpointError, match=r"m\.gguf: "):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE"])
def test_what_is_for_people_may_be_a_folder(models: Path, tmp_path: Path, name: str) -> None:
    source = Path(shutil.copytree(models / "hf", tmp_path / "source"))
    (source / name).mkdir()
    done = convert(source, tmp_path / "out", to="hf")
    assert f"not carried along, as no part of the model: {name}/" in done.notes


def test_templates_that_may_not_be_read_are_not_left_out(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = Path(shutil.copytree(models / "hf", f"/tmp/{tmp_path_factory.getbasetemp().name}-open"))
    try:
        folder = base / "additional_chat_templates"
        folder.mkdir()
        (folder / "rag.jinja").write_text("{{ messages }}")
        folder.chmod(0)
        with as_nobody(), pytest.raises(CheckpointError, match="templates: cannot be read: Permis"):
            Tokenizer.from_pretrained(base)
    finally:
        shutil.rmtree(base)
