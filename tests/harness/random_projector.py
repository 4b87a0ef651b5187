"""Small projectors with random weights that the real llama-server loads: eyes and ears for a `random_gguf` model.

The eyes are Gemma 3's (SigLIP and one matrix), the ears Ultravox's (Whisper's encoder and two matrices): these want the
fewest tensors. What a model says of what it sees through them means nothing.
"""

from pathlib import Path
from typing import Final

import gguf
import numpy as np

IMAGE_TOKENS: Final = 4
"""Of every image, whatever its size."""
SOUND_TOKENS: Final = 30
"""Of every 30 s of sound, and of what is left of them."""

_WIDTH: Final = 32
_FEED_FORWARD: Final = 48
_PIXELS, _PATCH, _MERGED = 32, 8, 2
_MELS, _FRAMES, _STACKED = 80, 1500, 50


def write_random_projector(
    path: Path,
    *,
    sees: bool = True,
    hears: bool = False,
    embedding_length: int = 64,
    said_length: int = 0,
    eyes: str = "gemma3",
    kind: gguf.LlamaFileType = gguf.LlamaFileType.MOSTLY_F16,
    seed: int = 1,
) -> Path:
    """Write it for models with embeddings of this length. The same arguments give the same bytes.

    `said_length`: what the metadata says instead, as old files do. `eyes`: what they claim to be.
    """
    writer = _Writer(path, seed)
    writer.out.add_type("mmproj")
    writer.out.add_name("Random projector")
    writer.out.add_file_type(kind)
    writer.out.add_clip_has_vision_encoder(sees)
    writer.out.add_clip_has_audio_encoder(hears)
    if sees:
        writer.out.add_vision_projection_dim(said_length or embedding_length)
        writer.out.add_clip_vision_projector_type(eyes)
        _add_eyes(writer, embedding_length)
    if hears:
        writer.out.add_audio_projection_dim(said_length or embedding_length)
        _add_ears(writer, embedding_length)
    writer.close()
    return path


class _Writer:
    """A GGUF file whose weights come from a seed."""

    def __init__(self, path: Path, seed: int) -> None:
        self.out = gguf.GGUFWriter(path, "clip")
        self._random = np.random.default_rng(seed)

    def add(self, name: str, *shape: int, kind: type[np.floating] = np.float32) -> None:
        self.out.add_tensor(name, self._random.normal(0, 0.2, shape).astype(kind))

    def add_norm(self, name: str, width: int = _WIDTH, *, bias: bool = True) -> None:
        self.out.add_tensor(f"{name}.weight", np.ones(width, np.float32))
        if bias:
            self.out.add_tensor(f"{name}.bias", np.zeros(width, np.float32))

    def add_layer(self, name: str, *, biased: str) -> None:
        """One layer of a transformer; `biased`: which of q, k and v have a bias."""
        self.add_norm(f"{name}.ln1")
        for part in "qkv":
            self.add(f"{name}.attn_{part}.weight", _WIDTH, _WIDTH)
            if part in biased:
                self.add(f"{name}.attn_{part}.bias", _WIDTH)
        self.add(f"{name}.attn_out.weight", _WIDTH, _WIDTH)
        self.add_norm(f"{name}.ln2")
        self.add(f"{name}.ffn_up.weight", _FEED_FORWARD, _WIDTH)
        self.add(f"{name}.ffn_down.weight", _WIDTH, _FEED_FORWARD)

    def close(self) -> None:
        self.out.write_header_to_file()
        self.out.write_kv_data_to_file()
        self.out.write_tensors_to_file()
        self.out.close()


def _add_eyes(writer: _Writer, embedding_length: int) -> None:
    out = writer.out
    out.add_vision_embedding_length(_WIDTH)
    out.add_vision_feed_forward_length(_FEED_FORWARD)
    out.add_vision_block_count(1)
    out.add_vision_head_count(2)
    out.add_vision_attention_layernorm_eps(1e-6)
    out.add_vision_image_size(_PIXELS)
    out.add_vision_patch_size(_PATCH)
    out.add_vision_projector_scale_factor(_MERGED)
    out.add_vision_image_mean([0.5] * 3)
    out.add_vision_image_std([0.5] * 3)
    writer.add("v.patch_embd.weight", _WIDTH, 3, _PATCH, _PATCH, kind=np.float16)
    writer.add("v.patch_embd.bias", _WIDTH)
    writer.add("v.position_embd.weight", (_PIXELS // _PATCH) ** 2, _WIDTH)
    writer.add_layer("v.blk.0", biased="")
    writer.add_norm("v.post_ln")
    writer.add("mm.input_projection.weight", _WIDTH, embedding_length)
    writer.add_norm("mm.soft_emb_norm", bias=False)


def _add_ears(writer: _Writer, embedding_length: int) -> None:
    out = writer.out
    out.add_clip_audio_projector_type("ultravox")
    out.add_audio_embedding_length(_WIDTH)
    out.add_audio_feed_forward_length(_FEED_FORWARD)
    out.add_audio_block_count(1)
    out.add_audio_head_count(2)
    out.add_audio_attention_layernorm_eps(1e-5)
    out.add_audio_num_mel_bins(_MELS)
    out.add_audio_stack_factor(_STACKED)
    for number, inputs in ((1, _MELS), (2, _WIDTH)):
        writer.add(f"a.conv1d.{number}.weight", _WIDTH, inputs, 3, kind=np.float16)
        writer.add(f"a.conv1d.{number}.bias", _WIDTH, 1)
    writer.add("a.position_embd.weight", _FRAMES, _WIDTH)
    writer.add_layer("a.blk.0", biased="qv")
    writer.add_norm("a.post_ln")
    writer.add_norm("mm.a.norm_pre", _WIDTH * _STACKED, bias=False)
    writer.add("mm.a.mlp.1.weight", 2 * _WIDTH, _WIDTH * _STACKED)
    writer.add_norm("mm.a.norm_mid", bias=False)
    writer.add("mm.a.mlp.2.weight", embedding_length, _WIDTH)
