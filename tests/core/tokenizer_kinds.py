"""Texts and tokenizers to try them on: what the zoo is made of.

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
def byte_level():
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
    backend.post_processor = template("<s>", "$A")
    return json.loads(backend.to_str())


def template(*single):
    ids = [(token, {"<s>": 1, "</s>": 2}[token]) for token in single if token != "$A"]
    return processors.TemplateProcessing(single=list(single), special_tokens=ids)


@functools.cache
def pieces():
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
    backend.post_processor = template("<s>", "$A")
    state = json.loads(backend.to_str())
    state["model"] |= {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    state["model"] |= {"unk_token": "<unk>"}
    return state | {"added_tokens": [entry(t, id=i) for i, t in enumerate(tokens[:3])]}


@functools.cache
def word_pieces():
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = template("<s>", "$A", "</s>")
    return json.loads(backend.to_str())


@functools.cache
def unigram():
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
    backend.post_processor = template("$A", "</s>")
    return json.loads(backend.to_str())


@functools.cache
def words():
    words = ["<unk>", "<s>", "</s>", *sorted({word for line in CORPUS for word in line.split()})]
    backend = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return json.loads(backend.to_str())


def entry(text, **options):
    """A token as tokenizer.json and `added_tokens_decoder` describe it."""
    plain = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    return {"content": text, "special": True} | plain | options


def role(text, **options):
    """A token as a role in tokenizer_config.json."""
    return {"__type": "AddedToken"} | entry(text, **options)


def with_both():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.post_processor = template("<s>", "$A", "</s>")
    return json.loads(backend.to_str())["post_processor"]
