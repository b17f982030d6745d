"""Which class reads a tokenizer, held to the installed transformers."""

import pytest
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend
from transformers.models.auto import tokenization_auto as auto

from diy_core.errors import CheckpointError
from diy_core.text.class_names import MISTAKEN, OTHER_CLASSES, OTHER_MODEL_TYPES, REGISTERED
from diy_core.text.classes import AS_WRITTEN
from diy_core.text.rebuilt import REBUILT
from diy_core.text.tokenizer import Tokenizer
from tests.core.test_text_sweep import ZOO, write

KNOWN = {*REBUILT, AS_WRITTEN}


def test_every_model_type_of_transformers_is_known():
    theirs = {k: (v or "").removesuffix("Fast") for k, v in auto.TOKENIZER_MAPPING_NAMES.items()}
    assert {k: v for k, v in theirs.items() if v in KNOWN} == REGISTERED
    assert {k for k, v in theirs.items() if v not in KNOWN} == OTHER_MODEL_TYPES
    assert auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS == MISTAKEN


def test_every_tokenizer_class_of_transformers_is_known():
    names = {name for name in dir(transformers) if "Tokenizer" in name}
    names |= {name for name in auto.TOKENIZER_MAPPING_NAMES.values() if name}
    classes = {name.removesuffix("Fast"): auto.tokenizer_class_from_name(name) for name in names}
    own_rules = {
        name
        for name, found in classes.items()
        if isinstance(found, type)
        and issubclass(found, PreTrainedTokenizerBase)
        and found is not TokenizersBackend
        and name not in ("PreTrainedTokenizer", "PreTrainedTokenizerBase", "PythonBackend")
    }
    assert len(own_rules) > 80
    assert {
        name for name in own_rules if name.removesuffix("Tokenizer") not in OTHER_CLASSES
    } == set(REBUILT)


@pytest.mark.parametrize("name", ["BertTokenizerFast", "T5Tokenizer", "RobertaTokenizer"])
def test_other_classes_are_refused_by_name(tmp_path, name):
    files = ZOO["words of gpt-2"]
    write(tmp_path, files | {"tokenizer_config": {"tokenizer_class": name}})
    with pytest.raises(
        CheckpointError, match=f"{name.removesuffix('Fast')}' is not supported.*Known"
    ):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {"model_type": "siglip2"}])
def test_a_model_type_with_another_class_is_refused(tmp_path, config):
    said = {"tokenizer_class": "GemmaTokenizer"} if config["model_type"] == "siglip2" else {}
    write(tmp_path, ZOO["words of gpt-2"] | {"tokenizer_config": said, "config": config})
    with pytest.raises(CheckpointError, match=f"model_type '{config['model_type']}', whose"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("code", [{"AutoTokenizer": ["own.Own", None]}, ["own.Own", None]])
def test_code_of_its_own_is_refused(tmp_path, code):
    write(
        tmp_path,
        {"tokenizer": ZOO["words of gpt-2"]["tokenizer"], "tokenizer_config": {"auto_map": code}},
    )
    with pytest.raises(CheckpointError, match=r"auto_map names code .*own\.Own.* is not run"):
        Tokenizer.from_pretrained(tmp_path)


def test_code_of_its_own_for_the_model_is_no_matter(tmp_path):
    files = dict(ZOO["words of gpt-2"])
    files["tokenizer_config"] = files["tokenizer_config"] | {"auto_map": {"AutoConfig": "own.C"}}
    write(tmp_path, files)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).encode("the fox") == theirs("the fox").input_ids


def test_a_class_that_is_no_text(tmp_path):
    files = ZOO["words of gpt-2"]
    write(tmp_path, files | {"tokenizer_config": {"tokenizer_class": 3}})
    with pytest.raises(CheckpointError, match="tokenizer_class must be a string, got 3"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_class_whose_model_is_another_kind(tmp_path):
    files = ZOO["Unigram"]
    write(tmp_path, files | {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}})
    with pytest.raises(
        CheckpointError, match="a Unigram model, and the tokenizer class LlamaTokenizer is a BPE"
    ):
        Tokenizer.from_pretrained(tmp_path)
