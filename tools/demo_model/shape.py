"""The demo model's shape, for the training and the export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What the model looks like."""

    n_vocab: int = 10240
    n_layers: int = 6
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 128
    n_experts: int = 128
    n_used: int = 8
    n_ff: int = 32
    rope_base: float = 1e6
    eps: float = 1e-6
