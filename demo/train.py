# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2", "gguf>=0.17", "tokenizers>=0.22", "pyyaml>=6"]
# ///
"""Train cria, the demo model of llamaherd, and write it as GGUF.

    uv run demo/train.py --out llamaherd/llamaherd/demo/cria.gguf

Two CPU cores and some minutes are enough. The same seed on the same machine gives the same file.
"""

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import torch
from corpus import (
    Corpus,
    Expectation,
    Message,
    canonical,
    load_corpus,
    load_expectations,
    sample_conversation,
    sample_prose,
)
from gguf_file import Provenance, write_gguf
from model import Cria, Shape
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from vocabulary import MESSAGE_END, TokenRow, encode_conversation, encode_prose, render_prompt, train_tokenizer

DEMO: Final = Path(__file__).parent
DEFAULT_OUT: Final = DEMO.parent / "llamaherd" / "llamaherd" / "demo" / "cria.gguf"

THREADS: Final = 2
TOKENS_PER_STEP: Final = 4096
WARMUP_STEPS: Final = 50
LEARNING_RATE: Final = 1e-2
LEARNING_RATE_END: Final = 1e-4
TOKENIZER_CONVERSATIONS: Final = 3000
ANSWER_TOKENS_MAX: Final = 256
CUT_ANSWER_RATIO: Final = 0.85
CUT_ANSWER_TOKENS: Final = 16
"""Most answers are cut after their first tokens: those depend on the question, the rest is soon known by
heart. More questions fit into a step that way."""
PROSE_RATIO: Final = 0.12
"""Share of rows that begin with plain text instead of a conversation."""


def main() -> int:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    rng = Random(arguments.seed)
    corpus_path = DEMO / "corpus.yaml"
    corpus_sha256 = hashlib.sha256(corpus_path.read_bytes()).hexdigest()
    expectations = load_expectations(DEMO / "expected.yaml")
    unseen = frozenset(canonical(expected.question) for expected in expectations if expected.unseen)
    corpus = load_corpus(corpus_path, unseen=unseen)

    tokenizer = train_tokenizer(tokenizer_texts(corpus, rng))
    model = Cria(Shape(vocabulary=tokenizer.get_vocab_size()))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(corpus.topics)} topics", flush=True)
    fit(model, batches(corpus, tokenizer, rng), steps=arguments.steps)

    # From here on the weights are what the file holds, so that the check below speaks for the file.
    model.half().float()
    provenance = Provenance(steps=arguments.steps, seed=arguments.seed, corpus_sha256=corpus_sha256)
    write_gguf(arguments.out, model, tokenizer, provenance)
    content = arguments.out.read_bytes()
    print(f"wrote {arguments.out.name}, {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    missed = check(model, tokenizer, expectations)
    failed = [expected for expected in missed if not expected.known_miss]
    met = len(expectations) - len(missed)
    print(f"{met} of {len(expectations)} expectations met, {len(failed)} unexpectedly missed")
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train cria and write it as GGUF.")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of 4096 tokens each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    return parser.parse_args()


def tokenizer_texts(corpus: Corpus, rng: Random) -> Iterator[str]:
    """The text the vocabulary is made from: sampled like the training, but apart from it."""
    for _ in range(TOKENIZER_CONVERSATIONS):
        yield from (message.text for message in sample_conversation(corpus, rng))


def batches(corpus: Corpus, tokenizer: Tokenizer, rng: Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of token ids and of which of them are learned.

    Most rows are short, because most chats are; every eighth batch fills the whole context so that
    cria keeps to the last question of a long chat too.
    """
    step = 0
    while True:
        row_tokens = 2048 if step % 8 == 7 else 512 if step % 4 == 3 else 256
        rows = [fill_row(corpus, tokenizer, rng, row_tokens) for _ in range(TOKENS_PER_STEP // row_tokens)]
        yield torch.tensor([row.ids for row in rows]), torch.tensor([row.learned for row in rows])
        step += 1


def fill_row(corpus: Corpus, tokenizer: Tokenizer, rng: Random, row_tokens: int) -> TokenRow:
    """One row of training text: conversations one after another, cut at the end.

    Nothing hides an earlier conversation from a later one. That is what teaches cria to answer the
    last question whatever stands before it.
    """
    ids: list[int] = []
    learned: list[bool] = []
    while len(ids) < row_tokens:
        if not ids and rng.random() < PROSE_RATIO:
            piece = encode_prose(tokenizer, *sample_prose(corpus, rng))
        else:
            piece = encode_conversation(
                tokenizer,
                sample_conversation(corpus, rng),
                answer_tokens_max=lambda: CUT_ANSWER_TOKENS if rng.random() < CUT_ANSWER_RATIO else None,
            )
        ids += piece.ids
        learned += piece.learned
    return TokenRow(ids=ids[:row_tokens], learned=learned[:row_tokens])


def fit(model: Cria, training: Iterator[tuple[Tensor, Tensor]], *, steps: int) -> None:
    """Train for `steps` batches, printing the loss as it goes.

    Muon takes the matrices of the layers, AdamW the rest: after 250 steps 48 % of fresh answers were right
    token for token, with AdamW alone 31 %. bfloat16 halves the time of a step on a CPU that knows it.
    """
    matrices = [parameter for parameter in model.blk.parameters() if parameter.dim() == 2]
    in_matrices = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_matrices]
    optimizers: tuple[torch.optim.Optimizer, ...] = (
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.95)),
    )
    started_s = time.monotonic()
    for step in range(steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, steps)
        ids, learned = next(training)
        wanted = learned[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1])[wanted]
        loss = functional.cross_entropy(logits.float(), ids[:, 1:][wanted])
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - started_s:6.1f} s", flush=True)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LEARNING_RATE_END + (LEARNING_RATE - LEARNING_RATE_END) * (1 + math.cos(math.pi * progress)) / 2


def check(model: Cria, tokenizer: Tokenizer, expectations: list[Expectation]) -> list[Expectation]:
    """The expectations whose answer misses a word; those answers are printed."""
    model.eval()
    missed = []
    for expected in expectations:
        messages = [Message(role="system", text=expected.system)] if expected.system else []
        answer = ""
        for question in (*expected.earlier, expected.question):
            messages.append(Message(role="user", text=question))
            answer = reply(model, tokenizer, messages)
            messages.append(Message(role="assistant", text=answer))
        if missing := expected.missing_from(answer):
            missed.append(expected)
            print(f"missed {missing}: {expected.question!r} -> {answer!r}")
    return missed


def reply(model: Cria, tokenizer: Tokenizer, messages: list[Message]) -> str:
    """The temperature-0 answer to the last message."""
    prompt = tokenizer.encode(render_prompt(messages)).ids
    end_id = tokenizer.get_vocab()[MESSAGE_END]
    answer: str = tokenizer.decode(model.continue_greedily(prompt, end_id=end_id, tokens_max=ANSWER_TOKENS_MAX))
    return answer


if __name__ == "__main__":
    sys.exit(main())
