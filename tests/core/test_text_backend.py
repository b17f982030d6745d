"""The tokenizer of a directory: what is refused, what is noted, what tells tokenizers apart."""

import itertools
import json

import pytest
from transformers import AutoTokenizer

from diy_core.data import tokenizer_hash
from diy_core.data.files import file_hash
from diy_core.errors import CheckpointError
from diy_core.text.backend import load
from diy_core.text.byte_tokenizer import write_byte_tokenizer
from diy_core.text.kept_class import keep_class
from diy_core.text.tokenizer import Tokenizer
from tests.core.test_text_sweep import ZOO, write
from tests.core.tokenizer_kinds import entry

PLAIN = ZOO["words of gpt-2"]
END = 400


def changed(**settings):
    return PLAIN | {"tokenizer_config": PLAIN["tokenizer_config"] | settings}


def model(**values):
    tokenizer = PLAIN["tokenizer"]
    return PLAIN | {"tokenizer": tokenizer | {"model": tokenizer["model"] | values}}


# What is refused


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (changed(added_tokens_decoder={"x": {"content": "<tool>"}}), "tokens as objects by id"),
        (changed(added_tokens_decoder={"400": "<tool>"}), "tokens as objects by id"),
        (changed(added_tokens_decoder=["<tool>"]), "added_tokens_decoder must be an object"),
        (
            changed(added_tokens_decoder={"400": {"text": "x"}}),
            r"added_tokens_decoder\['400'\] must",
        ),
        (changed(eos_token=3), "eos_token must be a token"),
        (changed(extra_special_tokens="<tool>"), "extra_special_tokens must be a list"),
        (changed(extra_special_tokens=[3]), "extra_special_tokens must be a token"),
        (changed(split_special_tokens="yes"), "split_special_tokens must be true, false or null"),
        (
            changed(fast_tokenizer_files=["tokenizer.4.0.json"]),
            "names 'tokenizer.4.0.json', another",
        ),
        (PLAIN | {"added_tokens": {"<tool>": "400"}}, "must map tokens to ids, got '400'"),
        (PLAIN | {"added_tokens": {"<tool>": True}}, "must map tokens to ids, got True"),
        (PLAIN | {"special_tokens_map": {"eos_token": {"text": "x"}}}, "eos_token must be a token"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, files, words):
    with pytest.raises(CheckpointError, match=words):
        load(write(tmp_path, files))


def test_json_that_is_nested_too_deeply(tmp_path):
    write(tmp_path, PLAIN)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: is not valid JSON"):
        load(tmp_path)


def test_panics_of_the_library_are_errors_of_the_file(tmp_path, capfd):
    panics = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    write(tmp_path, PLAIN | {"tokenizer": PLAIN["tokenizer"] | {"normalizer": panics}})
    with pytest.raises(CheckpointError, match=r"tokenizer.json: is not a readable tokenizer"):
        load(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_text_that_the_tokenizer_has_no_token_for(tmp_path):
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"}
    write(tmp_path, {"tokenizer": PLAIN["tokenizer"] | {"model": words, "added_tokens": []}})
    with pytest.raises(ValueError, match=rf"{tmp_path}: the tokenizer cannot encode this text: .*"):
        Tokenizer.from_pretrained(tmp_path).encode("b")


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": {}},
        {"type": "BPE", "vocab": {}, "merges": ["abc"]},
        {"type": "BPE", "vocab": ["a"], "merges": []},
        {"type": "BPE", "vocab": {"a": "b"}, "merges": []},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]},
    ],
)
def test_a_vocabulary_that_cannot_be_read_by_a_class_that_builds_anew(tmp_path, model):
    files = changed(tokenizer_class="GPT2Tokenizer")
    write(tmp_path, files | {"tokenizer": PLAIN["tokenizer"] | {"model": model}})
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: (has no readable|cannot be built)"
    ):
        load(tmp_path)


@pytest.mark.parametrize("added", [["<tool>"], [{"content": "<tool>"}], [{"id": 3}], [3]])
def test_added_tokens_that_are_none(tmp_path, added):
    tokenizer = PLAIN["tokenizer"] | {"added_tokens": added}
    write(tmp_path, changed(tokenizer_class="GPT2Tokenizer") | {"tokenizer": tokenizer})
    with pytest.raises(CheckpointError, match="added_tokens must"):
        load(tmp_path)


def test_an_old_file_that_does_not_name_the_kind_of_its_model(tmp_path):
    model = {k: v for k, v in PLAIN["tokenizer"]["model"].items() if k != "type"}
    files = changed(tokenizer_class="GPT2Tokenizer")
    write(tmp_path, files | {"tokenizer": PLAIN["tokenizer"] | {"model": model}})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).encode("the fox") == theirs("the fox").input_ids


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_nothing_cannot_be_put_around_a_text(tmp_path, role):
    """Where transformers does not fail, it puts the unknown token there."""
    files = changed(**{role: ""}) | {"special_tokens_map": {f"add_{role}": True}}
    write(tmp_path, files)
    with pytest.raises(CheckpointError, match=f"has an empty {role}, which is to be put around"):
        load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.unk_token_id in theirs("the").input_ids


# Notes


def test_dropout_is_turned_off(tmp_path):
    found = load(write(tmp_path, model(dropout=0.5)))
    assert found.notes == [
        "dropout (0.5) of tokenizer.json was turned off: it would give the same text other ids "
        "each time"
    ]
    (tmp_path / "without").mkdir()
    whole = load(write(tmp_path / "without", PLAIN)).tokenizer
    text = "the quick brown fox jumps over the lazy dog"
    assert {tuple(found.tokenizer.encode(text).ids) for _ in range(8)} == {
        tuple(whole.encode(text).ids)
    }


def test_no_dropout_is_no_note(tmp_path):
    assert load(write(tmp_path, model(dropout=0.0))).notes == []


def test_other_ids_than_the_files_say_are_noted(tmp_path):
    files = changed(added_tokens_decoder={"500": {"content": "<tool>", "special": True}})
    found = load(write(tmp_path, files))
    [note] = found.notes
    assert note.startswith("'<tool>' has id 400, as transformers gives it, and not the 500")
    assert AutoTokenizer.from_pretrained(tmp_path)(
        "<tool>", add_special_tokens=False
    ).input_ids == [400]


def alike(words=("TOOL", "tool"), **normalized):
    """Added tokens that lower case makes one."""
    tokens = {
        str(END + i): entry(text, normalized=normalized.get(text, True))
        for i, text in enumerate(words)
    }
    files = changed(added_tokens_decoder=tokens)
    return files | {"tokenizer": files["tokenizer"] | {"normalizer": {"type": "Lowercase"}}}


def test_added_tokens_that_the_normaliser_makes_one_are_noted(tmp_path):
    """The library takes one of them or the other, each time that it reads them."""
    files = write(tmp_path, alike())
    assert {i for _ in range(40) for i in load(files).tokenizer.encode("tool").ids} >= {400, 401}
    [note] = load(files).notes
    assert note.startswith("the added tokens 'TOOL', 'tool' are all 'tool' to the normaliser")


def test_added_tokens_that_are_not_normalised_are_no_note(tmp_path):
    assert load(write(tmp_path, alike(TOOL=False))).notes == []


def test_of_very_many_odd_tokens_the_first_are_noted(tmp_path):
    decoder = {str(500 + 2 * i): entry(f"<{i}>") for i in range(1000)}
    notes = load(write(tmp_path, changed(added_tokens_decoder=decoder))).notes
    assert notes[0].startswith("'<0>' has id ")
    assert 10 < len(notes) < 50
    assert notes[-1] == f"and {1000 - len(notes) + 1} more such notes"


def test_of_very_many_tokens_that_are_alike_the_first_are_named(tmp_path):
    pairs = ("Tt", "Oo", "Oo", "Ll", "Bb", "Aa", "Rr", "Ss")
    words = ["".join(letters) for letters in itertools.product(*pairs)]
    (note,) = load(write(tmp_path, alike(words))).notes
    assert "'TOOLBARS', " in note
    assert f" and {len(words) - 20} more are all 'toolbars' to the normaliser" in note


def stripped():
    """A tokenizer that takes the white space off the ends of a text."""
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    return PLAIN | {"tokenizer": PLAIN["tokenizer"] | {"normalizer": strip}}


@pytest.mark.parametrize("place", ["tokenizer", "added_tokens_decoder", "added_tokens"])
def test_an_added_token_of_which_the_normaliser_leaves_nothing(tmp_path, place):
    """Beside a second one, the library asks for all memory as it looks for nothing in a text."""
    files = stripped()
    line = entry("\n", special=False, normalized=True, lstrip=True)
    if place == "tokenizer":
        added = [*files["tokenizer"]["added_tokens"], line | {"id": END}]
        files["tokenizer"] = files["tokenizer"] | {"added_tokens": added}
    elif place == "added_tokens":
        files["added_tokens"] = {"\n": END}
    else:
        decoder = {"added_tokens_decoder": {str(END): line}}
        files["tokenizer_config"] = files["tokenizer_config"] | decoder
    with pytest.raises(CheckpointError, match=r"added token '\\n', of which the normaliser"):
        load(write(tmp_path, files))


def test_one_that_is_not_normalised_is_found(tmp_path):
    decoder = {"added_tokens_decoder": {str(END): entry("\n", special=False, normalized=False)}}
    files = stripped()
    files["tokenizer_config"] = files["tokenizer_config"] | decoder
    ids = Tokenizer.read(write(tmp_path, files)).encode("the\nfox")
    assert END in ids
    assert ids == AutoTokenizer.from_pretrained(tmp_path)("the\nfox")["input_ids"]


@pytest.mark.parametrize("rules", ["smollm", "llama-bpe", "gpt-2"])
def test_a_class_that_splits_otherwise_than_the_file_is_noted(tmp_path, rules):
    files = ZOO[f"words of {rules}"]
    settings = files["tokenizer_config"] | {"tokenizer_class": "GPT2Tokenizer"}
    ours = Tokenizer.read(write(tmp_path, files | {"tokenizer_config": settings}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("it's 1234") == theirs("it's 1234").input_ids
    words = "GPT2Tokenizer splits text into words otherwise than tokenizer.json, and was taken"
    assert [note.startswith(words) for note in ours.notes] == [True] * (rules != "gpt-2")


@pytest.mark.parametrize("name", ["words of llama-bpe", "added_tokens_decoder", "Llama silent"])
def test_what_is_usual_has_no_notes(tmp_path, name):
    assert load(write(tmp_path, ZOO[name])).notes == []


# Large vocabularies of Mistral's


@pytest.fixture(scope="module")
def large():
    words = {"model": PLAIN["tokenizer"]["model"]}
    more = {f"unused {i}": END + i for i in range(100_001)}
    words["model"] = words["model"] | {"vocab": words["model"]["vocab"] | more}
    return PLAIN["tokenizer"] | words


@pytest.mark.parametrize(
    ("rules", "version"),
    [("words of gpt-2", "4.50.0"), ("words of llama-bpe", "4.50.0"), ("words of gpt-2", "5.1.0")],
)
def test_the_mistral_fix(tmp_path, large, rules, version):
    base = large | {"pre_tokenizer": ZOO[rules]["tokenizer"]["pre_tokenizer"]}
    config = {"model_type": "mistral", "transformers_version": version}
    files = changed(fix_mistral_regex=True) | {"tokenizer": base, "config": config}
    ours, theirs = Tokenizer.read(write(tmp_path, files)), AutoTokenizer.from_pretrained(tmp_path)
    text = "aCamelCase THEFox 123 12/ don't\n\n"
    assert ours.encode(text) == theirs(text).input_ids
    fixed = json.loads(ours.backend.pre_tokenizer.__getstate__()) != base["pre_tokenizer"]
    assert fixed == (version == "4.50.0")


# What tells tokenizers apart


@pytest.mark.parametrize(
    "name", ["words of gpt-2", "no tokenizer_config.json", "keys without effect"]
)
def test_the_hash_is_that_of_tokenizer_json_where_it_says_all(tmp_path, name):
    write(tmp_path, ZOO[name])
    assert tokenizer_hash(tmp_path) == file_hash(tmp_path / "tokenizer.json")


def test_the_hash_covers_every_file_that_decides_about_ids(tmp_path):
    names = [
        "words of gpt-2",
        "added_tokens_decoder",
        "added_tokens.json",
        "extra_special_tokens",
        "split_special_tokens=True",
        "special_tokens_map.json with flags",
        "GPT2",
        "Cohere",
        "model_type qwen2, None",
        "roles with strip",
        "roles that are new",
    ]
    hashes = set()
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        folder.mkdir()
        hashes.add(tokenizer_hash(write(folder, ZOO[name])))
    # The chat marks are the same tokens, whichever file has them.
    assert len(hashes) >= len(names) - 2
    assert tokenizer_hash(tmp_path / "1") == tokenizer_hash(tmp_path / "3")


def test_the_hash_says_whether_special_tokens_are_split(tmp_path):
    hashes = set()
    for split in (True, False):
        (folder := tmp_path / str(split)).mkdir()
        files = changed(tokenizer_class="GPT2Tokenizer", split_special_tokens=split)
        hashes.add(tokenizer_hash(write(folder, files)))
    assert len(hashes) == 2


def test_bytes_with_a_token_more_are_not_bytes(tmp_path):
    write_byte_tokenizer(tmp_path)
    assert tokenizer_hash(tmp_path) == "bytes"
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(tmp_path, {"tokenizer_config": settings | {"extra_special_tokens": ["<|im_end|>"]}})
    assert tokenizer_hash(tmp_path) != "bytes"


# Next to another config.json


@pytest.mark.parametrize("name", ["model_type qwen2, None", "model_type granite, GPT2Tokenizer"])
def test_copied_files_keep_their_class(tmp_path, name):
    source, copy = tmp_path / "source", tmp_path / "copy"
    for folder in (source, copy):
        folder.mkdir()
        write(folder, ZOO[name])
    write(copy, {"config": {"model_type": "llama"}})
    assert tokenizer_hash(copy) != tokenizer_hash(source)
    keep_class(source, copy)
    assert tokenizer_hash(copy) == tokenizer_hash(source)


def test_files_that_mean_the_same_are_left_alone(tmp_path):
    write(tmp_path, PLAIN)
    before = (tmp_path / "tokenizer_config.json").read_bytes()
    keep_class(tmp_path, tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == before
