"""The model file: weights, tokenizer, chat template and provenance as one F16 GGUF."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy
from model import RMS_EPSILON, ROPE_BASE, Cria
from tokenizers import Tokenizer
from vocabulary import CHAT_TEMPLATE, CONTROL_TOKENS, MESSAGE_END, MESSAGE_START, PRE_TOKENIZER, merges_of

DESCRIPTION: Final = (
    "The demo model of llamaherd: a tiny Llama that answers a few dozen questions about llamaherd. "
    "Trained from scratch by demo/train.py on demo/corpus.yaml, text written for this project only. "
    "Not useful for anything else."
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What it takes to make the same file again."""

    steps: int
    seed: int
    corpus_sha256: str


def write_gguf(path: Path, model: Cria, tokenizer: Tokenizer, provenance: Provenance) -> None:
    """Write the model; the same arguments give the same bytes, there is no time stamp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    _add_identity(writer, model, provenance)
    _add_shape(writer, model)
    _add_tokenizer(writer, tokenizer)
    for name, parameter in model.named_parameters():
        weights = parameter.detach().numpy()
        is_matrix = weights.ndim == 2
        tensor_name = name if name.endswith(".weight") else f"{name}.weight"
        writer.add_tensor(tensor_name, weights.astype(numpy.float16 if is_matrix else numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_identity(writer: gguf.GGUFWriter, model: Cria, provenance: Provenance) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("cria")
    writer.add_basename("cria")
    writer.add_organization("llamaherd")
    writer.add_description(DESCRIPTION)
    writer.add_license("Apache-2.0")
    writer.add_size_label(f"{parameters / 1e6:.1f}M")
    writer.add_tags(["llamaherd", "demo", "text-generation"])
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_uint32("cria.training.steps", provenance.steps)
    writer.add_uint32("cria.training.seed", provenance.seed)
    writer.add_string("cria.training.corpus_sha256", provenance.corpus_sha256)
    # llama-server's default where a client does not ask for a temperature: a demo should not vary.
    writer.add_sampling_temp(0.0)


def _add_shape(writer: gguf.GGUFWriter, model: Cria) -> None:
    shape = model.shape
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(RMS_EPSILON)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in CONTROL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(merges_of(tokenizer))
    # Every conversation starts with this token already, so none is added in front.
    writer.add_bos_token_id(ids[MESSAGE_START])
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(ids[MESSAGE_END])
    writer.add_pad_token_id(ids[MESSAGE_END])
    writer.add_chat_template(CHAT_TEMPLATE)
