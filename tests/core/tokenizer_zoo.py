"""Tokenizers of many kinds, as directories: what the sweep in `test_text_sweep.py` runs over."""

from tests.core.tokenizer_kinds import (
    PRE_TOKENIZERS,
    byte_level,
    entry,
    pieces,
    role,
    unigram,
    with_both,
    word_pieces,
    words,
)

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
AS_WRITTEN = {"tokenizer_class": "PreTrainedTokenizerFast"}
CHAT = ["<|im_start|>", "<|im_end|>"]
BYTE, PIECES = byte_level(), pieces()
PLAIN = {"tokenizer": BYTE, "tokenizer_config": AS_WRITTEN | ROLES}
END = max(BYTE["model"]["vocab"].values()) + 1
IDS = {str(END + i): entry(text) for i, text in enumerate(CHAT)}


def zoo():
    """Name to files: a file's stem to the content of stem.json."""
    return {
        name: files
        for section in (_rules, _models, _classes, _by_config, _elsewhere, _flags)
        for name, files in section()
    }


def configured(base=BYTE, **settings):
    """A tokenizer at its word, but for some keys of tokenizer_config.json."""
    return {"tokenizer": base, "tokenizer_config": AS_WRITTEN | ROLES | settings}


def _rules():
    """Rules for words, of many families, and normalisers."""
    for name, rules in PRE_TOKENIZERS.items():
        yield f"words of {name}", PLAIN | {"tokenizer": BYTE | {"pre_tokenizer": rules}}
    for name in ("NFC", "NFD", "NFKC", "Lowercase"):
        yield f"normaliser {name}", PLAIN | {"tokenizer": BYTE | {"normalizer": {"type": name}}}


def _models():
    """Models that are no byte-level BPE, and SentencePiece's."""
    yield "WordPiece", configured(word_pieces())
    yield "WordPiece, cleaned up", configured(word_pieces(), clean_up_tokenization_spaces=True)
    yield "Unigram", configured(unigram())
    yield "Unigram, cleaned up", configured(unigram(), clean_up_tokenization_spaces=True)
    yield "words", configured(words())
    # SentencePiece's, by normaliser and by pre-tokenizer.
    for scheme in ("first", "always", "never"):
        meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        base = PIECES | {"normalizer": None, "pre_tokenizer": meta}
        yield f"Metaspace {scheme}", configured(base)
    yield "Prepend", configured(PIECES)
    without = PIECES | {"model": PIECES["model"] | {"byte_fallback": False, "fuse_unk": False}}
    yield "Prepend without bytes", configured(without)


def _classes():
    """The classes that are built anew."""
    for legacy in (True, False, None):
        for prefix in (True, False, None):
            keys = {"legacy": legacy, "add_prefix_space": prefix}
            said = {key: value for key, value in keys.items() if value is not None}
            named = " ".join(f"{k}={v}" for k, v in said.items()) or "silent"
            yield f"Llama {named}", configured(PIECES, tokenizer_class="LlamaTokenizer", **said)
    yield (
        "Llama with nulls",
        configured(PIECES, tokenizer_class="LlamaTokenizer", legacy=None, add_prefix_space=None),
    )
    yield (
        "Llama without roles",
        {"tokenizer": PIECES, "tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast"}},
    )
    yield "Llama that is byte-level", configured(tokenizer_class="LlamaTokenizer")
    others = ("CodeLlama", "Gemma", "Qwen2", "Qwen3_5", "GPT2", "GPTNeoX", "Cohere")
    for name in others:
        base = PIECES if name in ("CodeLlama", "Gemma") else BYTE
        yield f"{name}", configured(base, tokenizer_class=f"{name}Tokenizer")
        extra = [role("<tool>", special=False)]
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
            "eos_token": role("<|im_end|>", rstrip=True),
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
    for name in ("CodeLlama", "Gemma"):
        objects = {"unk_token": role("<unk>", lstrip=True), "eot_token": role("<tool>")}
        yield (
            f"{name}, objects",
            configured(PIECES, tokenizer_class=f"{name}Tokenizer", **objects),
        )
    texts = {"eot_token": "<|im_end|>", "prefix_token": "<tool>"}
    yield "CodeLlama, texts", configured(PIECES, tokenizer_class="CodeLlamaTokenizer", **texts)
    yield "a class that nobody knows", configured(tokenizer_class="ErnieBot4Tokenizer")
    yield "a class that is fast twice", configured(PIECES, tokenizer_class="LlamaTokenizerFastFast")
    yield "no tokenizer_config.json", {"tokenizer": BYTE}


def _by_config():
    """The class by config.json."""
    for model_type, declared in (
        ("qwen2", None),
        ("code_llama", None),
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
        ("gpt_neox", ""),
        ("my_own", ""),
        ("qwen2", ""),
        ("bert", "GPT2Tokenizer"),
        ("internlm2", "LlamaTokenizer"),
    ):
        base = PIECES if declared == "LlamaTokenizer" else BYTE
        said = ROLES | ({} if declared is None else {"tokenizer_class": declared})
        yield (
            f"model_type {model_type}, {declared}",
            {"tokenizer": base, "tokenizer_config": said, "config": {"model_type": model_type}},
        )
    yield (
        "empty class in config.json",
        {"tokenizer": BYTE, "config": {"model_type": "qwen2", "tokenizer_class": ""}},
    )
    yield (
        "class in config.json",
        {
            "tokenizer": BYTE,
            "tokenizer_config": ROLES,
            "config": {"model_type": "llama", "tokenizer_class": "GPT2Tokenizer"},
        },
    )


def _elsewhere():
    """Tokens that stand elsewhere than in tokenizer.json."""
    yield "added_tokens_decoder", configured(added_tokens_decoder=IDS)
    yield (
        "added_tokens_decoder, roles",
        configured(added_tokens_decoder=IDS, eos_token="<|im_end|>", pad_token="<|im_end|>"),
    )
    yield (
        "added_tokens_decoder, rstrip",
        configured(
            added_tokens_decoder={
                str(END): entry("<|im_end|>", rstrip=True),
                "2": entry("</s>", lstrip=True, rstrip=True),
            }
        ),
    )
    yield (
        "added_tokens_decoder, plain words",
        configured(
            added_tokens_decoder={
                str(END): entry("<extra>", special=False, normalized=True, single_word=True),
                str(END + 1): entry("<tool>", special=False),
            }
        ),
    )
    yield (
        "added_tokens_decoder, other order",
        configured(added_tokens_decoder=dict(reversed(IDS.items()))),
    )
    yield (
        "added_tokens_decoder, gap",
        configured(
            added_tokens_decoder={str(END + 9): entry("<tool>"), str(END + 3): entry("<|im_end|>")}
        ),
    )
    yield (
        "added_tokens.json",
        PLAIN | {"added_tokens": {text: END + i for i, text in enumerate(CHAT)}},
    )
    yield (
        "added_tokens.json, special",
        configured(additional_special_tokens=["<|im_end|>"])
        | {"added_tokens": {text: END + i for i, text in enumerate(CHAT)}},
    )
    # A special token stands in the text as it is written, others as the normaliser has them.
    yield (
        "added_tokens.json, normalised",
        configured(
            BYTE | {"normalizer": {"type": "Lowercase"}}, extra_special_tokens=["<|IM_END|>"]
        )
        | {"added_tokens": {"<|IM_END|>": END, "The": END + 1}},
    )
    yield "added_tokens.json, a known id", PLAIN | {"added_tokens": {"<tool>": 2}}
    yield (
        "added_tokens.json, a word",
        PLAIN | {"added_tokens": {"the": BYTE["model"]["vocab"]["the"], "fox": END}},
    )
    yield "additional_special_tokens", configured(additional_special_tokens=CHAT)
    yield (
        "additional_special_tokens, objects",
        configured(additional_special_tokens=[role("<|im_end|>", lstrip=True), "<tool>"]),
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
        "extra_special_tokens, by a role that others have",
        configured(extra_special_tokens={"tool_token": "<tool>", "pad_token": "<|im_end|>"}),
    )
    yield (
        "model_specific_special_tokens",
        configured(model_specific_special_tokens={"tool_token": "<tool>"}),
    )
    yield (
        "a role of its own",
        configured(image_token="<mask>", tool_token=role("<tool>", lstrip=True)),
    )
    yield "a role of its own, no token", configured(tool_token=entry("<tool>"))
    yield "a role that is empty", configured(bos_token="", pad_token="")
    yield (
        "roles that are new",
        configured(pad_token="<pad>", mask_token=role("<mask>", lstrip=True), sep_token="</s>"),
    )
    yield "roles that are null", configured(pad_token=None, unk_token=None)
    yield "roles with strip", configured(eos_token=role("</s>", lstrip=True, rstrip=True))
    yield (
        "special_tokens_map.json",
        PLAIN
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
        configured(added_tokens_decoder=IDS)
        | {"special_tokens_map": {"eos_token": "<tool>", "pad_token": "<pad>"}},
    )
    yield (
        "special_tokens_map.json, extra tokens by role",
        PLAIN | {"special_tokens_map": {"extra_special_tokens": {"tool_token": "<tool>"}}},
    )
    yield (
        "special_tokens_map.json with flags",
        PLAIN | {"special_tokens_map": {"add_eos_token": True, "add_bos_token": True}},
    )
    yield (
        "special_tokens_map.json with objects",
        configured(extra_special_tokens=["<tool>"])
        | {"special_tokens_map": {"extra_special_tokens": [{"content": "<|im_end|>"}, "<tool>"]}},
    )
    yield (
        "extra tokens by role, by the old name, and in special_tokens_map.json",
        configured(
            extra_special_tokens={"tool_token": "<tool>"}, additional_special_tokens=["<extra>"]
        )
        | {"special_tokens_map": {"extra_special_tokens": CHAT}},
    )
    yield (
        "added_tokens.json, a role at a known id",
        configured(sep_token=role("<tool>", single_word=True)) | {"added_tokens": {"<tool>": 2}},
    )
    yield (
        "added_tokens.json, an object",
        configured(extra_special_tokens=[role("<tool>", rstrip=True)])
        | {"added_tokens": {"<tool>": END}},
    )
    yield (
        "added_tokens.json, special in special_tokens_map.json",
        {
            "tokenizer": PIECES,
            "special_tokens_map": {
                "image_token": entry("<tool>"),
                "additional_special_tokens": ["<tool>", "it"],
            },
            "added_tokens": {"<tool>": END, "it": END + 1},
        },
    )
    again = [*BYTE["added_tokens"], entry("</s>", id=END, special=False)]
    for class_name in ("PreTrainedTokenizerFast", "GPT2Tokenizer"):
        yield (
            f"one token twice, {class_name}",
            configured(BYTE | {"added_tokens": again}, tokenizer_class=class_name),
        )
    yield (
        "four files",
        configured(pad_token="<pad>", extra_special_tokens=["<tool>"])
        | {
            "special_tokens_map": {"mask_token": "<mask>"},
            "added_tokens": {"<extra>": END, "<pad>": END + 1},
        },
    )
    own = BYTE["added_tokens"] + [
        entry("<|im_end|>", id=END, rstrip=True),
        entry("<extra>", id=END + 1, special=False, single_word=True),
    ]
    yield "added in tokenizer.json", configured(BYTE | {"added_tokens": own})
    yield (
        "added in tokenizer.json and elsewhere",
        configured(
            BYTE | {"added_tokens": own},
            added_tokens_decoder={"0": entry("<unk>"), str(END): entry("<|im_end|>")},
        ),
    )
    padded = BYTE | {
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


def _flags():
    """Flags, and keys without effect."""
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
            added_tokens_decoder={str(END): entry("<extra>", special=False)},
        ),
    )
    yield (
        "no post-processor, flags",
        configured(BYTE | {"post_processor": None}, add_bos_token=True, add_eos_token=True),
    )
    yield (
        "BOS and EOS around",
        configured(BYTE | {"post_processor": with_both()}),
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
