# Copyright 2026 tinychat_ros developers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""One decoder block; architectures differ by what their ModelConfig says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Optional

import torch
from torch import Tensor

from tinychat_ros.kernels import ops
from tinychat_ros.kernels.linear import Linear
from tinychat_ros.kernels.packing import gate_up_order, rotary_order
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.layers import alibi_slopes, qkv_rows, WeightSource
from tinychat_ros.models.rope import RopeConfig, rotary_table


@dataclass(frozen=True)
class Positions:
    """
    How the layers of a model know positions.

    :param rope: of layers without a window; None where nothing is rotated.
    :param local_rope: of those with one.
    :param slopes: of ALiBi, fp32 [Hq], or None.
    """

    rope: Optional[ops.RotaryTable] = None
    local_rope: Optional[ops.RotaryTable] = None
    slopes: Optional[Tensor] = None

    @classmethod
    def of(cls, config: ModelConfig, max_seq_len: int, device: torch.device) -> Positions:
        """Make the tables of a model."""
        def rotary(rope: Optional[RopeConfig]) -> Optional[ops.RotaryTable]:
            return rope and rotary_table(rope, config.head_dim, max_seq_len, device)

        rope = rotary(config.rope)
        slopes = (alibi_slopes(config.num_attention_heads, config.alibi_bias_max).to(device)
                  if config.alibi_bias_max else None)
        return cls(rope, rotary(config.local_rope) or rope, slopes)


@dataclass(frozen=True)
class Block:
    """
    One decoder block; ``qkv`` and ``gate_up`` are one linear each where they can be.

    :param gate_up: the up projection alone, where ``gated`` is false.
    :param mlp_scales: [I], what the activation is divided by, or None; without a gate only.
    """

    attention_norm: ops.AnyNorm
    qkv: tuple[Linear, ...]
    o_proj: Linear
    mlp_norm: ops.AnyNorm
    gate_up: tuple[Linear, ...]
    down_proj: Linear
    rope: Optional[ops.RotaryTable]
    scores: ops.Scores
    head_norm: Optional[ops.HeadNorm] = None
    clip_qkv: float = 0.0
    attention_post_norm: Optional[ops.AnyNorm] = None
    mlp_post_norm: Optional[ops.AnyNorm] = None
    activation: str = 'silu'
    gated: bool = True
    mlp_scales: Optional[Tensor] = None
    parallel: bool = False

    @classmethod
    def load(cls, config: ModelConfig, weights: WeightSource, index: int,
             positions: Positions) -> Block:
        """Read a block."""
        names, prefix = config.names, f'{config.names.blocks}.{index}'
        window = config.sliding_windows[index]

        def norm(name: str) -> Optional[ops.AnyNorm]:
            return load_norm(config, weights, f'{prefix}.{name}') if name else None

        return cls(
            attention_norm=norm(names.attention_norm), qkv=_qkv(config, weights, prefix),
            o_proj=weights.linears([f'{prefix}.{names.o_proj}'], [config.hidden_size],
                                   config.num_attention_heads * config.head_dim)[0],
            mlp_norm=norm(names.mlp_norm), gate_up=_gate_up(config, weights, prefix),
            down_proj=weights.linears([f'{prefix}.{names.down_proj}'], [config.hidden_size],
                                      config.intermediate_size)[0],
            rope=positions.local_rope if window else positions.rope,
            scores=ops.Scores(config.attention_scale, window, config.attn_logit_softcapping,
                              positions.slopes),
            head_norm=_head_norm(config, weights, prefix), clip_qkv=config.clip_qkv,
            attention_post_norm=norm(names.attention_post_norm),
            mlp_post_norm=norm(names.mlp_post_norm),
            activation=config.hidden_act, gated=config.gated_mlp,
            mlp_scales=weights.optional(f'{prefix}.{names.mlp_scales}', [config.intermediate_size])
            if names.mlp_scales else None,
            parallel=config.parallel)

    def forward(self, x: Tensor, cache: ops.LayerCache, start: ops.Start) -> Tensor:
        """Run x [T, H] at positions start .. start + T - 1 and append it to the cache."""
        attended = ops.linear_residual(self.attend(x, cache, start), self.o_proj, x,
                                       self.attention_post_norm)
        gated = self.activated(x if self.parallel else attended)
        return ops.linear_residual(gated, self.down_proj, attended, self.mlp_post_norm)

    def attend(self, x: Tensor, cache: ops.LayerCache, start: ops.Start) -> Tensor:
        """Return what ``o_proj`` reads, [T, Hq * D], and append to the cache."""
        q = ops.qkv_rope_append(x, self.attention_norm, self.qkv, self.rope, cache, start,
                                self.head_norm, self.clip_qkv)
        return ops.attention(q, cache, start, self.scores)

    def activated(self, x: Tensor) -> Tensor:
        """Return what ``down_proj`` reads, [T, I]."""
        if self.gated:
            return ops.norm_gate_up(x, self.mlp_norm, self.gate_up, self.activation)
        return ops.norm_up(x, self.mlp_norm, self.gate_up[0], self.activation, self.mlp_scales)

    def linears(self) -> Iterator[Linear]:
        """Yield the linears in the order in which they run."""
        yield from (*self.qkv, self.o_proj, *self.gate_up, self.down_proj)


def load_norm(config: ModelConfig, weights: WeightSource, name: str) -> ops.AnyNorm:
    """Read a norm of the hidden size."""
    shape = [config.hidden_size]
    weight = _norm_weight(config, weights, name, shape)
    if config.layer_norm:
        return ops.LayerNorm(weight, weights.optional(f'{name}.bias', shape), config.norm_eps)
    return ops.Norm(weight, config.norm_eps)


def _norm_weight(config: ModelConfig, weights: WeightSource, name: str,
                 shape: list[int]) -> Tensor:
    weight = weights.tensor(f'{name}.weight', shape)
    return weight + config.norm_offset if config.norm_offset else weight


def _head_norm(config: ModelConfig, weights: WeightSource,
               prefix: str) -> Optional[ops.HeadNorm]:
    if not config.names.q_norm:
        return None
    q, k = (_norm_weight(config, weights, f'{prefix}.{name}', [config.head_dim])
            for name in (config.names.q_norm, config.names.k_norm))
    return ops.HeadNorm(q, k, config.norm_eps)


def _qkv(config: ModelConfig, weights: WeightSource, prefix: str) -> tuple[Linear, ...]:
    heads, kv_heads, head_dim = (config.num_attention_heads, config.num_key_value_heads,
                                 config.head_dim)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    # The kernel that rotates what it projects does nothing in between.
    fused = config.rope is not None and not config.names.q_norm and not config.clip_qkv
    return weights.linears(
        _below(prefix, config.names.qkv), sizes if len(config.names.qkv) > 1 else [sum(sizes)],
        config.hidden_size,
        rotary_order(heads + kv_heads, kv_heads, head_dim) if fused else None,
        qkv_rows(heads, kv_heads, head_dim, config.rotary_dim, config.qkv_grouped))


def _gate_up(config: ModelConfig, weights: WeightSource, prefix: str) -> tuple[Linear, ...]:
    names, inter = config.names.gate_up, config.intermediate_size
    rows = 2 * inter if config.gated_mlp else inter
    return weights.linears(_below(prefix, names), [rows // len(names)] * len(names),
                           config.hidden_size, gate_up_order(inter) if config.gated_mlp else None)


def _below(prefix: str, names: tuple[str, ...]) -> list[str]:
    return [f'{prefix}.{name}' for name in names]
