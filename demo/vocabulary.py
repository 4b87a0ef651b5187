"""The tokenizer: a byte-level BPE of 1024 tokens trained on the corpus itself, and the chat markup around it."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from corpus import Message
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

VOCABULARY_SIZE: Final = 1024
MESSAGE_START: Final = "<|im_start|>"
MESSAGE_END: Final = "<|im_end|>"
CONTROL_TOKENS: Final = (MESSAGE_START, MESSAGE_END)

PRE_TOKENIZER: Final = "smollm"
"""llama.cpp's name for single digits followed by GPT-2's pattern. Not "gpt-2": that one also turns on
clean_spaces, which would change text on its way through `/detokenize`."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """Token ids and, for each, whether cria is to learn to say it."""

    ids: list[int]
    learned: list[bool]


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer that can encode any text, and the given ones in few tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = PreTokenizers([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def merges_of(tokenizer: Tokenizer) -> list[str]:
    """The merge rules in order, each as the two pieces with a space between, as GGUF wants them."""
    merges: list[str | list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def render_prompt(messages: Sequence[Message]) -> str:
    """What `CHAT_TEMPLATE` gives for these messages with `add_generation_prompt`."""
    turns = (f"{MESSAGE_START}{message.role}\n{message.text}{MESSAGE_END}\n" for message in messages)
    return "".join(turns) + f"{MESSAGE_START}assistant\n"


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], *, answer_tokens_max: Callable[[], int | None]
) -> TokenRow:
    """The conversation as it stands in the context; learned are the answers and the token that ends each.

    `answer_tokens_max` is asked for each answer how many of its tokens to keep; `None` keeps all and its end.
    """
    ids: list[int] = []
    learned: list[bool] = []
    for message in messages:
        is_answer = message.role == "assistant"
        # The role line and the answer are encoded apart because generation starts between them.
        for text, is_learned in (
            (f"{MESSAGE_START}{message.role}\n" + ("" if is_answer else message.text), False),
            ((message.text if is_answer else "") + MESSAGE_END, is_answer and message.learned),
            ("\n", False),
        ):
            piece: list[int] = tokenizer.encode(text).ids
            if is_learned:
                piece = piece[: answer_tokens_max()]
            ids += piece
            learned += [is_learned] * len(piece)
    return TokenRow(ids=ids, learned=learned)


def encode_prose(tokenizer: Tokenizer, heading: str, text: str) -> TokenRow:
    """Plain text that ends like an answer; the heading is not learned."""
    heading_ids: list[int] = tokenizer.encode(heading).ids
    text_ids: list[int] = tokenizer.encode(text + MESSAGE_END).ids
    return TokenRow(ids=heading_ids + text_ids, learned=[False] * len(heading_ids) + [True] * len(text_ids))
