"""The demo model in PyTorch: llama.cpp's qwen3moe, small, with weights that are Q4_0 while it trains.

Every matrix is seen through `q4_0`, the rounding that its GGUF will have, so the exported file computes
what was trained. Gradients pass the rounding unchanged (straight-through estimator, Bengio et al. 2013,
arXiv:1308.3432). All experts are computed for all tokens and the ones not chosen are multiplied by zero: at
this width that is faster on a GPU than sorting tokens by expert, and the result and the gradients are the
same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from shape import Shape
from torch import Tensor, nn

BLOCK = 32  # weights of a Q4_0 block


def q4_0_parts(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ggml's Q4_0: scales [blocks, 1], which are float16 numbers, and quants [blocks, 32], 0..15."""
    blocks = weights.float().reshape(-1, BLOCK)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = (extreme / -8).half().float()
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    return scale, torch.clamp(torch.floor(blocks * inverse + 8.5), 0, 15)


def q4_0(weights: Tensor, share: Tensor) -> Tensor:
    """Return weights moved by `share` (0..1) of the way to their Q4_0 values; gradients pass unchanged."""
    with torch.no_grad():
        scale, quants = q4_0_parts(weights)
        rounded = (scale * (quants - 8)).reshape(weights.shape)
        change = (rounded - weights) * share
    return weights + change


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return RMSNorm over the last dimension, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


class Layer(nn.Module):
    """Attention, then routed experts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        embd, heads, kv = shape.n_embd, shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
        out = (2 * shape.n_layers) ** -0.5
        self.attn_norm = nn.Parameter(torch.ones(embd))
        self.ffn_norm = nn.Parameter(torch.ones(embd))
        self.attn_q_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.attn_k_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.attn_q = _matrix(heads, embd)
        self.attn_k = _matrix(kv, embd)
        self.attn_v = _matrix(kv, embd)
        self.attn_output = _matrix(embd, heads, gain=out)
        self.ffn_gate_inp = _matrix(shape.n_experts, embd)
        self.ffn_gate_exps = _matrix(shape.n_experts, shape.n_ff, embd)
        self.ffn_up_exps = _matrix(shape.n_experts, shape.n_ff, embd)
        self.ffn_down_exps = _matrix(shape.n_experts, embd, shape.n_ff, gain=2 * out)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the residual stream [batch, tokens, embd], router probabilities and chosen experts."""
        x = x + self._attention(rms_norm(x, self.attn_norm, self.shape.eps), turn, share)
        update, probabilities, chosen = self._experts(rms_norm(x, self.ffn_norm, self.shape.eps), share)
        return x + update, probabilities, chosen

    def _attention(self, x: Tensor, turn: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
        shape, (batch, tokens, _) = self.shape, x.shape

        def heads(weight: Tensor, n: int) -> Tensor:
            return F.linear(x, q4_0(weight, share).to(x.dtype)).view(batch, tokens, n, shape.head_dim)

        q = _rotated(rms_norm(heads(self.attn_q, shape.n_head), self.attn_q_norm, shape.eps), turn)
        k = _rotated(rms_norm(heads(self.attn_k, shape.n_head_kv), self.attn_k_norm, shape.eps), turn)
        v = heads(self.attn_v, shape.n_head_kv)
        group = shape.n_head // shape.n_head_kv
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).flatten(2), q4_0(self.attn_output, share).to(x.dtype))

    def _experts(self, x: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        probabilities = F.linear(x.float(), self.ffn_gate_inp).softmax(-1)
        weights, chosen = probabilities.topk(shape.n_used)
        weights = weights / weights.sum(-1, keepdim=True)
        gates = torch.zeros_like(probabilities).scatter(-1, chosen, weights).to(x.dtype)
        gate = F.linear(x, q4_0(self.ffn_gate_exps, share).to(x.dtype).flatten(0, 1))
        up = F.linear(x, q4_0(self.ffn_up_exps, share).to(x.dtype).flatten(0, 1))
        hidden = (F.silu(gate) * up).unflatten(-1, (shape.n_experts, shape.n_ff)) * gates.unsqueeze(-1)
        down = q4_0(self.ffn_down_exps, share).to(x.dtype).transpose(0, 1).flatten(1)
        return F.linear(hidden.flatten(-2), down), probabilities, chosen


class DemoModel(nn.Module):
    """The whole model; the head is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Parameter(torch.randn(shape.n_vocab, shape.n_embd) * 0.03)
        self.output_norm = nn.Parameter(torch.ones(shape.n_embd))
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.n_layers))

    def forward(
        self, tokens: Tensor, share: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return normed outputs [batch, tokens, embd], and by layer router probabilities and chosen experts.

        Logits are the outputs times `head(share)`.
        """
        turn = _angles(self.shape, tokens.shape[1], tokens.device)
        x = F.embedding(tokens, q4_0(self.token_embd, share).to(dtype))
        probabilities, chosen = [], []
        for layer in self.blk:
            x, p, c = layer(x, turn, share)
            probabilities.append(p)
            chosen.append(c)
        return rms_norm(x, self.output_norm, self.shape.eps), probabilities, chosen

    def head(self, share: Tensor) -> Tensor:
        """Return the output matrix [vocab, embd]."""
        return q4_0(self.token_embd, share)


def _matrix(*dimensions: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*dimensions) * gain * dimensions[-1] ** -0.5)


def _angles(shape: Shape, n_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    half = shape.head_dim // 2
    speed = shape.rope_base ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angle = torch.arange(n_tokens, device=device, dtype=torch.float32)[:, None] * speed
    return angle.cos(), angle.sin()


def _rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Return x [batch, tokens, heads, head_dim] with rotary positions, halves paired (NEOX order)."""
    cos, sin = (part[None, :, None, :] for part in turn)
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
