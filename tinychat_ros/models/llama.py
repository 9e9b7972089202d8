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
"""Llama: RMSNorm, rotary attention with grouped key-value heads, SiLU-gated MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinychat_ros.kernels import ops
from tinychat_ros.kernels.linear import Linear
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.layers import rotary_table, WeightSource


@dataclass(frozen=True)
class LlamaBlock:
    """One decoder block; ``qkv`` and ``gate_up`` are one linear each where they can be."""

    attention_norm: ops.Norm
    qkv: tuple[Linear, ...]
    o_proj: Linear
    mlp_norm: ops.Norm
    gate_up: tuple[Linear, ...]
    down_proj: Linear

    @classmethod
    def load(cls, config: ModelConfig, weights: WeightSource, prefix: str) -> LlamaBlock:
        """Read the block whose tensors' names begin with ``prefix``."""
        hidden, inter = config.hidden_size, config.intermediate_size
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        attn, mlp = f'{prefix}.self_attn', f'{prefix}.mlp'

        def norm(name: str) -> ops.Norm:
            return ops.Norm(weights.tensor(f'{prefix}.{name}.weight', [hidden]),
                            config.rms_norm_eps)

        return cls(
            attention_norm=norm('input_layernorm'),
            qkv=weights.linears([f'{attn}.{p}_proj' for p in 'qkv'],
                                [q_size, kv_size, kv_size], hidden),
            o_proj=weights.linears([f'{attn}.o_proj'], [hidden], q_size)[0],
            mlp_norm=norm('post_attention_layernorm'),
            gate_up=weights.linears([f'{mlp}.gate_proj', f'{mlp}.up_proj'],
                                    [inter, inter], hidden),
            down_proj=weights.linears([f'{mlp}.down_proj'], [hidden], inter)[0])

    def forward(self, x: Tensor, rope: ops.RotaryTable, cache: ops.LayerCache,
                start: int) -> Tensor:
        """Run x [T, H] at positions start .. start + T - 1 and append it to the cache."""
        x = ops.linear_residual(self.attend(x, rope, cache, start), self.o_proj, x)
        return ops.linear_residual(self.gated(x), self.down_proj, x)

    def attend(self, x: Tensor, rope: ops.RotaryTable, cache: ops.LayerCache,
               start: int) -> Tensor:
        """Return what ``o_proj`` reads, [T, Hq * D], and append to the cache."""
        q = ops.qkv_rope_append(x, self.attention_norm, self.qkv, rope, cache, start)
        return ops.attention(q, cache, start + x.shape[0])

    def gated(self, x: Tensor) -> Tensor:
        """Return what ``down_proj`` reads, [T, I]."""
        return ops.norm_gate_up(x, self.mlp_norm, self.gate_up)


class LlamaModel:
    """A Llama decoder; one sequence at a time, its past in a slot of the KV cache."""

    def __init__(self, config: ModelConfig, weights: WeightSource, max_seq_len: int,
                 device: torch.device) -> None:
        hidden, vocab = config.hidden_size, config.vocab_size
        self.config = config
        self._embedding = weights.tensor('model.embed_tokens.weight', [vocab, hidden])
        self.dtype = self._embedding.dtype
        self._blocks = [LlamaBlock.load(config, weights, f'model.layers.{i}')
                        for i in range(config.num_hidden_layers)]
        self._norm = ops.Norm(weights.tensor('model.norm.weight', [hidden]), config.rms_norm_eps)
        # Some tied checkpoints store the head all the same; it then equals the embedding.
        if config.tie_word_embeddings:
            self._lm_head = Linear(self._embedding)
        else:
            self._lm_head = weights.linears(['lm_head'], [vocab], hidden)[0]
        self._rope = rotary_table(config, max_seq_len, device)

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, cache: KVCache, slot: int, start: int,
                all_logits: bool = False) -> Tensor:
        """
        Append tokens to a slot and return what may come next.

        :param token_ids: int64 [T], at positions start .. start + T - 1.
        :param all_logits: return the logits after every token instead of after the last.
        :returns: logits fp32 [V], or [T, V].
        """
        x = ops.embedding(token_ids, self._embedding)
        for i, block in enumerate(self._blocks):
            x = block.forward(x, self._rope, cache.layer(i, slot), start)
        if all_logits:
            return ops.lm_head(x, self._norm, self._lm_head)
        return ops.lm_head(x[-1:], self._norm, self._lm_head)[0]
