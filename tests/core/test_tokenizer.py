"""The tokenizer, against transformers' reading of the same directory."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from diy_core.errors import CheckpointError
from diy_core.notes import CheckpointNote
from diy_core.text.tokenizer import Tokenizer

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CORPUS = [
    "The quick brown fox jumps over the lazy dog, 2024 times; 你好 世界 你好 🙂🙂 naïve café\n",
    "def f(x):\n    return x ** 2\n",
] * 3
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role not in ['system', 'user', 'assistant'] %}\n"
    "        {{ raise_exception('unknown role ' + message.role) }}\n"
    "    {% endif %}\n"
    "<{{ message['role'] }}>{{ message['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is <b> & 'c'? 你好 "},
]
TEXTS = [
    "The year 2024, 3.14",
    "🙂 👩‍👩‍👧 naïve café",
    "你好世界",
    "def f(x):\n\treturn x\r\n\n\n    # done",
    "   leading and trailing   ",
    f"{BOS}user{EOS} in <|pad|> text",
    "",
]


def byte_level():
    """A byte-level BPE tokenizer that puts BOS in front."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=[BOS, EOS, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single=[BOS, "$A"], pair=[BOS, "$A", "$B"], special_tokens=[(BOS, 0)]
    )
    return backend


def byte_fallback():
    """A tokenizer as SentencePiece makes them: spaces are U+2581, unknown characters are bytes."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "▁the",
        "é",
        "the",
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": {"__type": "AddedToken", "content": EOS, "normalized": False},
    "pad_token": PAD,
    "chat_template": TEMPLATE,
    "clean_up_tokenization_spaces": False,
}


def write(folder, settings=SETTINGS, backend=None, **files):
    """A directory with tokenizer files; `files` maps a stem to the content of stem.json."""
    (backend or byte_level()).save(str(folder / "tokenizer.json"))
    for name, content in ({"tokenizer_config": settings} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def read(folder, settings=SETTINGS, **files):
    return Tokenizer.from_pretrained(write(folder, settings, **files))


def with_template(folder, template):
    return read(folder, SETTINGS | {"chat_template": template})


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def ours(directory):
    return Tokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def theirs(directory):
    return AutoTokenizer.from_pretrained(directory)


# Text and ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add", [True, False])
def test_encode_and_decode_equal_transformers(ours, theirs, text, add):
    ids = ours.encode(text, add_special_tokens=add)
    assert ids == theirs(text, add_special_tokens=add)["input_ids"]
    assert all(type(i) is int for i in ids)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == (BOS if add else "") + text


def test_decode_takes_arrays(ours):
    ids = ours.encode("the fox")
    assert ours.decode(np.array(ids, np.int32)) == ours.decode(iter(ids)) == "the fox"


def test_ids_without_a_token_are_empty(ours):
    assert ours.decode([ours.vocab_size + 5, *ours.encode("fox")]) == "fox"


def test_sizes_and_special_ids(ours, theirs):
    assert ours.vocab_size == len(theirs) == 330
    assert (ours.bos_token_id, ours.pad_token_id, ours.eos_token_ids) == (0, 2, [1])
    assert theirs.special_tokens_map == ours.special_tokens


def test_truncation_and_padding_of_the_file_are_turned_off(tmp_path, ours):
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    text = "the quick brown fox"
    assert read(tmp_path, backend=backend).encode(text) == ours.encode(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, [1]),
        ({"generation_config": {"eos_token_id": [2, 1]}}, [2, 1]),
        ({"generation_config": {"eos_token_id": 2}, "config": {"eos_token_id": 1}}, [2]),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 2}}, [2]),
        ({"generation_config": {}, "config": {"eos_token_id": None}}, [1]),
    ],
)
def test_what_ends_a_generation(tmp_path, files, expected):
    assert read(tmp_path, **files).eos_token_ids == expected


def test_special_tokens_of_the_old_map_and_pad_of_the_generation_config(tmp_path):
    found = read(
        tmp_path,
        {},
        special_tokens_map={"bos_token": BOS, "eos_token": {"content": EOS}},
        generation_config={"pad_token_id": 7},
    )
    assert (found.bos_token_id, found.eos_token_ids, found.pad_token_id) == (0, [1], 7)


def test_a_tokenizer_without_special_tokens(tmp_path):
    found = read(tmp_path, {})
    assert (found.bos_token_id, found.eos_token_ids, found.pad_token_id) == (None, [], None)
    assert found.special_tokens == {}


@pytest.mark.parametrize("text", [b"bytes", 3, None, ["list"]])
def test_encode_refuses_what_is_no_text(ours, text):
    with pytest.raises(ValueError, match="must be a string, got " + type(text).__name__):
        ours.encode(text)


def test_encode_refuses_lone_surrogates(ours):
    with pytest.raises(
        ValueError, match=r"must be UTF-8, and holds \\ud\w+, half of a character: remove it"
    ):
        ours.encode("a\ud800b")


@pytest.mark.parametrize("ids", [[-100], [1.5], [[1, 2]], [2**31], ["a"], [True]])
def test_decode_refuses_what_is_no_id(ours, ids):
    with pytest.raises(ValueError, match="ids"):
        ours.decode(ids)


# Batches


def test_batch_pads_on_the_right(ours):
    ids, mask = ours.batch([[5, 6, 7], [8]])
    assert ids.dtype == mask.dtype == np.int32
    np.testing.assert_array_equal(ids, [[5, 6, 7], [8, 2, 2]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0]])


def test_batch_pads_on_the_left(ours):
    ids, mask = ours.batch([[5, 6, 7], [8]], padding_side="left")
    np.testing.assert_array_equal(ids, [[5, 6, 7], [2, 2, 8]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 0, 1]])


@pytest.mark.parametrize("side", ["right", "left"])
def test_batch_equals_transformers(ours, theirs, side):
    texts = ["The quick brown fox", "你好 2024", "x"]
    expected = theirs(texts, padding=True, padding_side=side, return_tensors="np")
    ids, mask = ours.batch(texts, side)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])


def test_batch_mixes_texts_and_ids(ours):
    ids, mask = ours.batch(["fox", np.array([9, 9])], add_special_tokens=False)
    lengths = mask.sum(1)
    assert ids[0, : lengths[0]].tolist() == ours.encode("fox", add_special_tokens=False)
    assert ids[1, : lengths[1]].tolist() == [9, 9]


@pytest.mark.parametrize(("settings", "filler"), [({"eos_token": EOS}, 1), ({}, 0)])
def test_padding_without_a_pad_token(tmp_path, settings, filler):
    ids, mask = read(tmp_path, settings).batch([[5, 6], [7]])
    np.testing.assert_array_equal(ids, [[5, 6], [7, filler]])
    np.testing.assert_array_equal(mask, [[1, 1], [1, 0]])


@pytest.mark.parametrize(
    ("rows", "side", "words"),
    [
        ("one text", "right", "list of texts"),
        ([], "right", "list of texts"),
        ([[1], []], "right", "row 1 has no tokens"),
        ([[1], [-1]], "right", "row 1 holds -1"),
        ([[1], [0.5]], "right", "row 1 must be a flat list of integers"),
        ([[1]], "middle", "'right' or 'left', got 'middle'"),
    ],
)
def test_bad_batches_are_refused(ours, rows, side, words):
    with pytest.raises(ValueError, match=words):
        ours.batch(rows, side)


# Chat


@pytest.mark.parametrize("prompt", [True, False])
def test_chat_equals_transformers(ours, theirs, prompt):
    expected = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
    assert ours.chat(CHAT, prompt) == expected
    assert expected.startswith(BOS + "<system>Be brief." + EOS)
    ids = theirs.apply_chat_template(CHAT, add_generation_prompt=prompt)["input_ids"]
    assert ours.encode_chat(CHAT, prompt) == ids
    assert ids.count(0) == 1  # the template's BOS, and no second one


TEMPLATES = [
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "{{ messages | tojson(sort_keys=true) }}{{ messages | tojson(separators=(',', ':')) }}",
    "{{ 'é <b>' | tojson }}{{ 'é' | tojson(ensure_ascii=true) }}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = 2 + s.n %}{% endfor %}{{s.n}}",
    "{{ 'tools' if tools is not none else 'no tools' }}{{ unk_token is defined }}{{ style }}",
    "  {% if true %}\n    kept\n  {% endif %}\n  end",
    "{{ strftime_now('%Y') }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_mean_what_they_mean_in_transformers(tmp_path, template):
    ours = with_template(tmp_path, template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(CHAT, tokenize=False, style="plain")
    assert ours.chat(CHAT, False, style="plain") == expected
    assert expected


def test_the_template_of_its_own_file_wins(tmp_path):
    write(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("own {{ messages[0].content }}")
    assert Tokenizer.from_pretrained(tmp_path).chat(CHAT) == "own Be brief."
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(CHAT, tokenize=False) == "own Be brief."


def test_of_several_templates_the_default_is_taken(tmp_path):
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert with_template(tmp_path, several).chat(CHAT) == "d"


def test_no_chat_template(tmp_path):
    with pytest.raises(ValueError, match=r"no chat template.*chat_template.jinja.*use encode"):
        with_template(tmp_path, None).chat(CHAT)


def test_what_the_template_raises_is_said(ours):
    with pytest.raises(ValueError, match="unknown role pirate"):
        ours.chat([{"role": "pirate", "content": "arr"}])


def test_a_broken_template_names_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"chat template of .*, line 2: unexpected '}'"):
        with_template(tmp_path, "a\n{% for m in messages %}{{ m }").chat(CHAT)


def test_an_error_while_the_template_runs_is_said(tmp_path):
    with pytest.raises(ValueError, match="failed: TypeError"):
        with_template(tmp_path, "{{ 1 + messages[0].content }}").chat(CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
    ],
)
def test_templates_run_in_a_sandbox(tmp_path, template):
    messages = [dict(message) for message in CHAT]
    with pytest.raises(ValueError, match=r"unsafe|not safely callable"):
        with_template(tmp_path, template).chat(messages)
    assert messages == CHAT


class Loaded(str):
    def fire(self):
        raise AssertionError("the template called a method of the caller's object")


def test_templates_see_plain_data_only(tmp_path):
    messages = [{"role": "user", "content": Loaded("x")}]
    with pytest.raises(ValueError, match="no attribute 'fire'"):
        with_template(tmp_path, "{{ messages[0].content.fire() }}").chat(messages)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "must be a list such as"),
        ({"role": "user", "content": "x"}, "must be a list such as"),
        (None, "must be a list such as"),
        ([], "empty"),
        (["hello"], "message 0 must be an object"),
        ([CHAT[0], {"content": "x"}], "message 1 needs role as a string, got none"),
        ([{"role": 5, "content": "x"}], "message 0 needs role as a string, got 5"),
        ([{"role": "user"}], "message 0 needs content as a string, got none"),
        ([{"role": "user", "content": []}], r"message 0 needs content as a string, got \[\]"),
        ([{"role": "tool", "content": None}], "message 0 needs content as a string, got None"),
        ([{"role": "assistant", "content": 5, "tool_calls": [{}]}], "as a string, got 5"),
        ([{"role": "user", "content": ["a"]}], r"message 0 needs content as a string, got \['a'\]"),
        ([{"role": "user", "content": "x", "at": object()}], "not JSON serializable"),
    ],
)
def test_malformed_messages_are_refused(ours, messages, words):
    with pytest.raises(ValueError, match=words):
        ours.chat(messages)


def test_a_message_that_calls_tools_needs_no_content(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    template = "{{ messages[0].tool_calls[0].function.name }}"
    assert with_template(tmp_path, template).chat([call]) == "f"


# Streams


def pieces_of(tokenizer, ids, skip=True):
    stream = tokenizer.stream(skip_special_tokens=skip)
    return [*(stream.push(i) for i in ids), stream.finish()]


def test_a_split_character_comes_whole(ours):
    ids = ours.encode("a𝄞b", add_special_tokens=False)
    assert len(ids) == 6  # four bytes, four tokens
    assert pieces_of(ours, ids) == ["a", "", "", "", "𝄞", "b", ""]


def test_a_character_comes_as_soon_as_it_is_complete():
    # Tokens that end in the middle of the next character: three bytes each, cut 2 + 3 + 1.
    letters = [bytes([b]) for b in "你好".encode()]
    alphabet = dict(zip(range(256), byte_alphabet(), strict=True))
    spell = ["".join(alphabet[b[0]] for b in letters[i:j]) for i, j in ((0, 2), (2, 5), (5, 6))]
    backend = tokenizers.Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(spell)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    assert pieces_of(Tokenizer(backend), [0, 1, 2]) == ["", "你", "好", ""]


def byte_alphabet():
    """GPT-2's letter for each byte: printable ones are themselves, the others follow 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def test_bytes_that_never_become_a_character_come_at_the_end(ours):
    ids = ours.encode("a𝄞", add_special_tokens=False)[:-1]
    assert pieces_of(ours, ids) == ["a", "", "", "", "\ufffd"]
    assert ours.decode(ids) == "a\ufffd"


def test_a_stream_starts_anew_after_finish(ours):
    stream = ours.stream()
    first, *_ = ours.encode("𝄞", add_special_tokens=False)
    assert (stream.push(first), stream.finish()) == ("", "\ufffd")
    assert [stream.push(i) for i in ours.encode("x")] == ["", "x"]


def test_special_tokens_in_a_stream(ours):
    ids = ours.encode(f"{BOS}x{EOS}", add_special_tokens=False)
    assert pieces_of(ours, ids) == ["", "x", "", ""]
    assert pieces_of(ours, ids, skip=False) == [BOS, "x", EOS, ""]


def test_spaces_between_sentencepiece_tokens_are_kept():
    found = Tokenizer(byte_fallback())
    ids = [found.backend.token_to_id(t) for t in ("<s>", "▁the", "▁the", "</s>", "▁the", "the")]
    assert "".join(pieces_of(found, ids)) == found.decode(ids) == "the the thethe"
    assert pieces_of(found, ids)[:3] == ["", "the", " the"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_join_to_the_text(ours, text):
    ids = ours.encode(text, add_special_tokens=False)
    pieces = pieces_of(ours, ids, skip=False)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 340), max_size=30), skip=st.booleans())
def test_pieces_of_any_ids_join_to_what_decode_says(ours, ids, skip):
    assert "".join(pieces_of(ours, ids, skip)) == ours.decode(ids, skip)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="aé你🏃 ", max_size=12))
def test_byte_fallback_pieces_join_to_the_text(text):
    found = Tokenizer(byte_fallback())
    # Bytes in a row, all spelled out: the decoder judges the run as a whole.
    ids = [3 + byte for byte in text.encode()]
    assert "".join(pieces_of(found, ids)) == found.decode(ids)


@pytest.mark.parametrize("start", ["你", "\n", "a你"])
def test_a_run_of_bytes_is_held_until_it_cannot_go_bad(start):
    # The decoder makes U+FFFD of the whole run, of its whole characters too.
    found, start = Tokenizer(byte_fallback()), [3 + byte for byte in start.encode()]
    held, bad = [""] * len(start), [*start, 3 + 255, 262]
    assert pieces_of(found, bad) == [*held, "", "\ufffd" * (len(start) + 1) + "the", ""]
    assert found.decode(bad) == "\ufffd" * (len(start) + 1) + "the"
    assert pieces_of(found, [*start, 262])[:-2] == held
    assert "".join(pieces_of(found, [*start, 262])) == found.decode([*start, 262])


@settings(max_examples=100, deadline=None)
@given(
    ids=st.lists(st.one_of(st.integers(0, 262), st.sampled_from([13, 198, 198, 172])), max_size=9)
)
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_of_any_bytes_join_to_the_text(skip, ids):
    found = Tokenizer(byte_fallback())
    assert "".join(pieces_of(found, ids, skip)) == found.decode(ids, skip)


@pytest.mark.parametrize("token_id", [-1, 1.5, "a", None])
def test_push_refuses_what_is_no_id(ours, token_id):
    with pytest.raises(ValueError, match="token_id"):
        ours.stream().push(token_id)


# Bad directories


def test_no_tokenizer_json(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json; copy it"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tekken.json", "spiece.model"])
def test_only_a_vocabulary_of_another_kind(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=rf"only {name}: .*save_pretrained"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_a_broken_tokenizer_json(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a readable tokenizer"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
@pytest.mark.parametrize("name", ["tokenizer_config", "generation_config"])
def test_a_broken_side_file(tmp_path, name, content):
    write(tmp_path)
    (tmp_path / f"{name}.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=rf"{name}.json: (is not valid|must hold a) JSON"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("eos", ["</s>", -2, True, [1, None]])
def test_bad_eos_ids(tmp_path, eos):
    with pytest.raises(CheckpointError, match="eos_token_id must be a token id or a list"):
        read(tmp_path, generation_config={"eos_token_id": eos})


def test_a_special_token_that_is_not_in_the_vocabulary(tmp_path):
    with pytest.warns(CheckpointNote, match="eos_token '</s>' was in no vocabulary: .* id 330"):
        found = read(tmp_path, SETTINGS | {"eos_token": "</s>"})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert found.encode("</s>") == [0, 330] == theirs("</s>").input_ids
