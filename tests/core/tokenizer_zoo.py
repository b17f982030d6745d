"""Tokenizers of many kinds, as directories: what the sweep in `test_text_sweep.py` runs over.

Small vocabularies, but the rules around them are those of real models: their regular expressions
for words, their normalisers, the classes and keys of their tokenizer_config.json.
"""

import functools
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? I'll say: it's 2024!\n",
    "def f(x):\n\treturn x ** 2  # 3.14159\r\n\r\n",
    "你好 世界 你好 naïve café ÜBER straße الكتاب किताब\n",
    "user assistant system begin end the there then other another thing\n",
] * 4

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n \t\r\n",
    "the",
    " the",
    "  the  fox ",
    "The quick brown fox jumps over the lazy dog.",
    "it's I'LL don't we're they've I'm you'd 's",
    "1 12 123 1234567890 3.14 1,000,000",
    "a1b2c3 x86_64 v2.0.1",
    "def f(x):\n    return x ** 2\n\n\n    # done",
    "\tindented\n\t\ttwice\r\n",
    "trailing space \nnext",
    "你好世界",
    "你好 the 世界",
    "日本語のテキスト、カタカナ。",
    "한국어 텍스트",
    "naïve café über STRASSE straße",
    "cafe\u0301 A\u030a e\u0301\u0302",
    "ﬁne ① Ⅷ ﾊﾝｶｸ",
    "किताब पढ़ना",
    "الكتاب ١٢٣",
    "🙂",
    "a🙂b 👩‍👩‍👧 🏳️‍🌈",
    "\u200bzero\u200d\u00a0width\u3000space",
    "x" * 60,
    "!!! ... ??? --- ,,, ' ' n't",
    "http://example.com/?q=a&b=c#d",
    "<s>the fox</s>",
    "<s> the fox </s> the",
    "</s>\nthe fox",
    "the</s>the<s>the",
    "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n",
    "a <|im_end|> b <|im_end|>c",
    "<|IM_END|> <pad>the <mask> <tool>x</tool> the<tool>",
    "[INST] the [/INST]</s><s>[INST] fox [/INST]",
    "<unk> <0x41> ▁the Ġthe ##ing",
    "thefoxthe <extra>extra<extra>s <extra>",
    "the . fox , dog ! it 's do n't ' x ' we 're",
]

# Rules for words. Where they are from: the tokenizer.json of the models.
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TITLE = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_CAPITALS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_GPT4O = rf"{_TITLE}{_ENDINGS}?|{_CAPITALS}{_ENDINGS}?|\p{{N}}{{1,3}}"
_TEKKEN = rf"{_TITLE}|{_CAPITALS}|\p{{N}}"
_LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _letters(**options):
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    } | options


def _split(pattern, behavior="Isolated", kind="Regex"):
    pattern = {kind: pattern}
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


_DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS = {
    "gpt-2": _letters(use_regex=True),
    "roberta": _letters(use_regex=True, add_prefix_space=True),
    "llama-bpe": _sequence(_split(f"{_LLAMA3}|{_SPACES}"), _letters()),
    "qwen2": _sequence(_split(f"{_QWEN2}|{_SPACES}"), _letters()),
    "tekken": _sequence(_split(rf"{_TEKKEN}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"), _letters()),
    "gpt-4o": _sequence(_split(rf"{_GPT4O}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"), _letters()),
    "smollm": _sequence(_DIGITS, _letters(use_regex=True)),
    "starcoder": _sequence(_DIGITS, _letters(use_regex=True)),
    "olmo": _sequence(
        _split(f"{_LLAMA3}|{_SPACES}", "Removed", "Regex") | {"invert": True}, _letters()
    ),
    "glm4": _sequence(_split(f"{_LLAMA3}|{_SPACES}"), _letters(trim_offsets=False)),
    "command-r": _sequence(_DIGITS, _letters(use_regex=True, trim_offsets=False)),
    "deepseek-coder": _sequence(
        _split("[\r\n]"),
        _split(r"\s?\p{L}+"),
        _split(r"\s?\p{P}+"),
        _split("[一-龥ࠀ-一가-퟿]+"),
        _DIGITS,
        _letters(),
    ),
    "falcon": _sequence(
        {"type": "Punctuation", "behavior": "Contiguous"},
        _letters(use_regex=True),
        _DIGITS,
        _split("[0-9][0-9][0-9]"),
    ),
    "gemma": _split(" ", "MergedWithPrevious", "String"),
}


@functools.cache
def _byte_level():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = _template("<s>", "$A")
    return json.loads(backend.to_str())


def _template(*single):
    ids = [(token, {"<s>": 1, "</s>": 2}[token]) for token in single if token != "$A"]
    return processors.TemplateProcessing(single=list(single), special_tokens=ids)


@functools.cache
def _pieces():
    """BPE over pieces as SentencePiece has them; bytes where a character is unknown."""
    words = ["▁the", "▁fox", "▁dog", "▁there", "▁user", "them", "▁▁", "▁▁▁▁", "it", "ing"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "\n", "é", "好"]
    tokens += [*map(chr, range(33, 127))]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
            if (pair := [word[: end - 1], word[end - 1 : end]]) not in merges:
                merges.append(pair)
    backend = tokenizers.Tokenizer(models.BPE({}, [], byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = _template("<s>", "$A")
    state = json.loads(backend.to_str())
    state["model"] |= {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    state["model"] |= {"unk_token": "<unk>"}
    return state | {"added_tokens": [entry(t, id=i) for i, t in enumerate(tokens[:3])]}


@functools.cache
def _word_pieces():
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = _template("<s>", "$A", "</s>")
    return json.loads(backend.to_str())


@functools.cache
def _unigram():
    characters = sorted(set("".join(CORPUS)) - set(" \n\t\r"))
    pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("▁", -2.0),
        ("▁the", -1.5),
        ("▁fox", -3),
    ]
    pieces += [(c, -5.0 - i / 64) for i, c in enumerate(characters)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = _template("$A", "</s>")
    return json.loads(backend.to_str())


@functools.cache
def _words():
    words = ["<unk>", "<s>", "</s>", *sorted({word for line in CORPUS for word in line.split()})]
    backend = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return json.loads(backend.to_str())


def entry(text, **options):
    """A token as tokenizer.json and `added_tokens_decoder` describe it."""
    plain = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    return {"content": text, "special": True} | plain | options


def _role(text, **options):
    """A token as a role in tokenizer_config.json."""
    return {"__type": "AddedToken"} | entry(text, **options)


ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
AS_WRITTEN = {"tokenizer_class": "PreTrainedTokenizerFast"}
CHAT = ["<|im_start|>", "<|im_end|>"]


def zoo():
    """Name to files: a file's stem to the content of stem.json."""
    return dict(_zoo())


def _zoo():
    byte, pieces = _byte_level(), _pieces()
    plain = {"tokenizer": byte, "tokenizer_config": AS_WRITTEN | ROLES}
    end = max(byte["model"]["vocab"].values()) + 1

    def configured(base=byte, **settings):
        return {"tokenizer": base, "tokenizer_config": AS_WRITTEN | ROLES | settings}

    # Rules for words, of many families.
    for name, rules in PRE_TOKENIZERS.items():
        yield f"words of {name}", plain | {"tokenizer": byte | {"pre_tokenizer": rules}}
    for name in ("NFC", "NFD", "NFKC", "Lowercase"):
        yield f"normaliser {name}", plain | {"tokenizer": byte | {"normalizer": {"type": name}}}
    # Models that are no byte-level BPE.
    yield "WordPiece", configured(_word_pieces())
    yield "WordPiece, cleaned up", configured(_word_pieces(), clean_up_tokenization_spaces=True)
    yield "Unigram", configured(_unigram())
    yield "Unigram, cleaned up", configured(_unigram(), clean_up_tokenization_spaces=True)
    yield "words", configured(_words())
    # SentencePiece's, by normaliser and by pre-tokenizer.
    for scheme in ("first", "always", "never"):
        meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        base = pieces | {"normalizer": None, "pre_tokenizer": meta}
        yield f"Metaspace {scheme}", configured(base)
    yield "Prepend", configured(pieces)
    without = pieces | {"model": pieces["model"] | {"byte_fallback": False, "fuse_unk": False}}
    yield "Prepend without bytes", configured(without)
    # The classes that are built anew.
    for legacy in (True, False, None):
        for prefix in (True, False, None):
            keys = {"legacy": legacy, "add_prefix_space": prefix}
            said = {key: value for key, value in keys.items() if value is not None}
            named = " ".join(f"{k}={v}" for k, v in said.items()) or "silent"
            yield f"Llama {named}", configured(pieces, tokenizer_class="LlamaTokenizer", **said)
    yield (
        "Llama with nulls",
        configured(pieces, tokenizer_class="LlamaTokenizer", legacy=None, add_prefix_space=None),
    )
    yield (
        "Llama without roles",
        {"tokenizer": pieces, "tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast"}},
    )
    yield "Llama that is byte-level", configured(tokenizer_class="LlamaTokenizer")
    others = ("CodeLlama", "Gemma", "Qwen2", "Qwen3_5", "GPT2", "GPTNeoX", "Cohere")
    for name in others:
        base = pieces if name in ("CodeLlama", "Gemma") else byte
        yield f"{name}", configured(base, tokenizer_class=f"{name}Tokenizer")
        extra = [_role("<tool>", special=False)]
        yield (
            f"{name}, extra",
            configured(base, tokenizer_class=f"{name}Tokenizer", additional_special_tokens=extra),
        )
        bare = {"tokenizer_class": f"{name}TokenizerFast", "add_prefix_space": True}
        bare |= {
            "added_tokens_decoder": {
                str(i): entry(t, lstrip=True) for i, t in enumerate(("<unk>", "<s>", "</s>"))
            }
        }
        yield f"{name}, bare", {"tokenizer": base, "tokenizer_config": bare}
        eos = {
            "eos_token": _role("<|im_end|>", rstrip=True),
            "unk_token": "<unk>",
            "bos_token": "<s>",
        }
        yield (
            f"{name}, roles",
            {
                "tokenizer": base | {"post_processor": None},
                "tokenizer_config": {"tokenizer_class": f"{name}Tokenizer"} | eos,
            },
        )
    yield "a class that nobody knows", configured(tokenizer_class="ErnieBot4Tokenizer")
    yield "no tokenizer_config.json", {"tokenizer": byte}
    # The class by config.json.
    for model_type, declared in (
        ("qwen2", None),
        ("qwen2", "LlamaTokenizerFast"),
        ("qwen3", "PreTrainedTokenizerFast"),
        ("granite", "GPT2Tokenizer"),
        ("gemma2", "LlamaTokenizer"),
        ("mistral", "LlamaTokenizer"),
        ("phi3", "LlamaTokenizer"),
        ("olmo2", None),
        ("olmo", None),
        ("starcoder2", "GPT2Tokenizer"),
        ("llama", None),
        ("my_own", "GPT2Tokenizer"),
        ("bert", "GPT2Tokenizer"),
        ("internlm2", "LlamaTokenizer"),
    ):
        base = pieces if declared == "LlamaTokenizer" else byte
        said = ROLES | ({} if declared is None else {"tokenizer_class": declared})
        yield (
            f"model_type {model_type}, {declared}",
            {"tokenizer": base, "tokenizer_config": said, "config": {"model_type": model_type}},
        )
    yield (
        "class in config.json",
        {
            "tokenizer": byte,
            "tokenizer_config": ROLES,
            "config": {"model_type": "llama", "tokenizer_class": "GPT2Tokenizer"},
        },
    )
    # Tokens that stand elsewhere.
    ids = {str(end + i): entry(text) for i, text in enumerate(CHAT)}
    yield "added_tokens_decoder", configured(added_tokens_decoder=ids)
    yield (
        "added_tokens_decoder, roles",
        configured(added_tokens_decoder=ids, eos_token="<|im_end|>", pad_token="<|im_end|>"),
    )
    yield (
        "added_tokens_decoder, rstrip",
        configured(
            added_tokens_decoder={
                str(end): entry("<|im_end|>", rstrip=True),
                "2": entry("</s>", lstrip=True, rstrip=True),
            }
        ),
    )
    yield (
        "added_tokens_decoder, plain words",
        configured(
            added_tokens_decoder={
                str(end): entry("<extra>", special=False, normalized=True, single_word=True),
                str(end + 1): entry("<tool>", special=False),
            }
        ),
    )
    yield (
        "added_tokens_decoder, other order",
        configured(added_tokens_decoder=dict(reversed(ids.items()))),
    )
    yield (
        "added_tokens_decoder, gap",
        configured(
            added_tokens_decoder={str(end + 9): entry("<tool>"), str(end + 3): entry("<|im_end|>")}
        ),
    )
    yield (
        "added_tokens.json",
        plain | {"added_tokens": {text: end + i for i, text in enumerate(CHAT)}},
    )
    yield (
        "added_tokens.json, special",
        configured(additional_special_tokens=["<|im_end|>"])
        | {"added_tokens": {text: end + i for i, text in enumerate(CHAT)}},
    )
    yield "added_tokens.json, a known id", plain | {"added_tokens": {"<tool>": 2}}
    yield (
        "added_tokens.json, a word",
        plain | {"added_tokens": {"the": byte["model"]["vocab"]["the"], "fox": end}},
    )
    yield "additional_special_tokens", configured(additional_special_tokens=CHAT)
    yield (
        "additional_special_tokens, objects",
        configured(additional_special_tokens=[_role("<|im_end|>", lstrip=True), "<tool>"]),
    )
    yield "extra_special_tokens", configured(extra_special_tokens=CHAT)
    yield (
        "extra_special_tokens, by role",
        configured(extra_special_tokens={"tool_token": "<tool>", "end_token": "<|im_end|>"}),
    )
    yield (
        "both kinds of extra tokens",
        configured(extra_special_tokens=["<tool>"], additional_special_tokens=CHAT),
    )
    yield (
        "model_specific_special_tokens",
        configured(model_specific_special_tokens={"tool_token": "<tool>"}),
    )
    yield (
        "a role of its own",
        configured(image_token="<mask>", tool_token=_role("<tool>", lstrip=True)),
    )
    yield (
        "roles that are new",
        configured(pad_token="<pad>", mask_token=_role("<mask>", lstrip=True), sep_token="</s>"),
    )
    yield "roles that are null", configured(pad_token=None, unk_token=None)
    yield "roles with strip", configured(eos_token=_role("</s>", lstrip=True, rstrip=True))
    yield (
        "special_tokens_map.json",
        plain
        | {
            "special_tokens_map": {
                "pad_token": "<pad>",
                "eos_token": entry("<|im_end|>", rstrip=True),
                "additional_special_tokens": ["<tool>"],
            }
        },
    )
    yield (
        "special_tokens_map.json against the config",
        configured(eos_token="<|im_end|>")
        | {"special_tokens_map": {"eos_token": "</s>", "extra_special_tokens": CHAT}},
    )
    yield (
        "special_tokens_map.json beside a decoder",
        configured(added_tokens_decoder=ids)
        | {"special_tokens_map": {"eos_token": "<tool>", "pad_token": "<pad>"}},
    )
    yield (
        "special_tokens_map.json with flags",
        plain | {"special_tokens_map": {"add_eos_token": True, "add_bos_token": True}},
    )
    yield (
        "four files",
        configured(pad_token="<pad>", extra_special_tokens=["<tool>"])
        | {
            "special_tokens_map": {"mask_token": "<mask>"},
            "added_tokens": {"<extra>": end, "<pad>": end + 1},
        },
    )
    own = byte["added_tokens"] + [
        entry("<|im_end|>", id=end, rstrip=True),
        entry("<extra>", id=end + 1, special=False, single_word=True),
    ]
    yield "added in tokenizer.json", configured(byte | {"added_tokens": own})
    yield (
        "added in tokenizer.json and elsewhere",
        configured(
            byte | {"added_tokens": own},
            added_tokens_decoder={"0": entry("<unk>"), str(end): entry("<|im_end|>")},
        ),
    )
    padded = byte | {
        "padding": {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }
    }
    yield (
        "padding in tokenizer.json",
        configured(
            padded
            | {
                "truncation": {
                    "max_length": 4,
                    "strategy": "LongestFirst",
                    "stride": 0,
                    "direction": "Right",
                }
            }
        ),
    )
    # Flags.
    for flag in (
        "split_special_tokens",
        "clean_up_tokenization_spaces",
        "add_bos_token",
        "add_eos_token",
        "legacy",
        "add_prefix_space",
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    ):
        for value in (True, False):
            yield f"{flag}={value}", configured(**{flag: value})
    yield (
        "cleaned up by force",
        configured(
            clean_up_tokenization_spaces=True,
            clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
        ),
    )
    yield (
        "split_special_tokens, more tokens",
        configured(
            split_special_tokens=True,
            extra_special_tokens=CHAT,
            added_tokens_decoder={str(end): entry("<extra>", special=False)},
        ),
    )
    yield (
        "no post-processor, flags",
        configured(byte | {"post_processor": None}, add_bos_token=True, add_eos_token=True),
    )
    yield (
        "BOS and EOS around",
        configured(byte | {"post_processor": json.loads(_with_both())["post_processor"]}),
    )
    yield (
        "keys without effect",
        configured(
            model_max_length=8,
            padding_side="left",
            truncation_side="left",
            errors="strict",
            use_default_system_prompt=True,
            sp_model_kwargs={},
            trim_offsets=False,
            do_lower_case=True,
            backend="tokenizers",
            is_local=True,
            model_input_names=["input_ids"],
            chat_template="{{ messages }}",
            response_schema={},
        ),
    )


def _with_both():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.post_processor = _template("<s>", "$A", "</s>")
    return backend.to_str()
