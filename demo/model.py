"""cria's network: Llama as llama.cpp computes it, in PyTorch."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

RMS_EPSILON: Final = 1e-5
ROPE_BASE: Final = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of the network.

    Heads have 64 dimensions because every llama.cpp backend has a flash-attention kernel for that size.
    All widths are multiples of 32, the block of Q8_0, so the file can be quantized.
    """

    vocabulary: int = 1024
    width: int = 192
    layers: int = 4
    heads: int = 3
    kv_heads: int = 1
    feed_forward: int = 448
    context_tokens: int = 2048

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Block(nn.Module):
    """One layer: attention, then SwiGLU, each behind an RMS norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.attn_norm = nn.Parameter(torch.ones(shape.width))
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.Parameter(torch.ones(shape.width))
        self.ffn_gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        hidden = hidden + self._attend(rms_norm(hidden, self.attn_norm), rotation)
        normed = rms_norm(hidden, self.ffn_norm)
        gated: Tensor = self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed))
        return hidden + gated

    def _attend(self, normed: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        rows, length, width = normed.shape
        heads, kv_heads, head_width = self.shape.heads, self.shape.kv_heads, self.shape.head_width
        query = rotate(self.attn_q(normed).view(rows, length, heads, head_width).transpose(1, 2), rotation)
        key = rotate(self.attn_k(normed).view(rows, length, kv_heads, head_width).transpose(1, 2), rotation)
        value = self.attn_v(normed).view(rows, length, kv_heads, head_width).transpose(1, 2)
        shared = heads // kv_heads
        mixed = functional.scaled_dot_product_attention(
            query, key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1), is_causal=True
        )
        projected: Tensor = self.attn_output(mixed.transpose(1, 2).reshape(rows, length, width))
        return projected


class Cria(nn.Module):
    """The network from token ids to logits; the output layer shares the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.Parameter(torch.ones(shape.width))
        cosine, sine = rope_rotation(shape.context_tokens, shape.head_width)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Layers that write into the residual start smaller, so that depth does not add up (GPT-2).
                writes_residual = "attn_output" in name or "ffn_down" in name
                std = 0.02 / (2 * self.shape.layers) ** 0.5 if writes_residual else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        cosine, sine = self.get_buffer("cosine")[:length], self.get_buffer("sine")[:length]
        hidden: Tensor = self.token_embd(ids)
        for block in self.blk:
            hidden = block(hidden, (cosine, sine))
        return functional.linear(rms_norm(hidden, self.output_norm), self.token_embd.weight)

    @torch.no_grad()
    def continue_greedily(self, ids: list[int], *, end_id: int, tokens_max: int) -> list[int]:
        """The likeliest next tokens up to, without, `end_id`: what temperature 0 gives."""
        answer: list[int] = []
        while len(answer) < tokens_max:
            next_id = int(self(torch.tensor([ids + answer]))[0, -1].argmax())
            if next_id == end_id:
                break
            answer.append(next_id)
        return answer


def rms_norm(hidden: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(hidden, weight.shape, weight, RMS_EPSILON)


def rope_rotation(positions: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, `[positions, head_width / 2]`."""
    frequencies = ROPE_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE over neighbouring pairs, llama.cpp's convention for the llama architecture.

    Hugging Face rotates halves instead; training with pairs spares the permutation of its converters.
    """
    cosine, sine = rotation
    even, odd = heads[..., 0::2], heads[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)
