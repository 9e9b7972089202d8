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
"""
A Llama decoder as people write it in PyTorch, and what can be bettered without changing weights.

H = hidden size, Hq / Hkv = query / key-value heads, D = head size, V = vocabulary, L = positions.
"""

from __future__ import annotations

from typing import Collection, Iterator, Sequence

import torch
from torch import Tensor
import torch.nn.functional as F

from tinychat_ros.kernels import cuda, reference
from tinychat_ros.kernels.operands import LayerCache, Scores, StepState
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.layers import WeightSource
from tinychat_ros.models.rope import rotary_table

STATIC_CACHE = 'static KV cache'
FUSED_NORMS = 'fused RMSNorm'
FAST_ATTENTION = 'attention split over the length'
MERGED = 'merged QKV and gate/up'
FUSED_ROTARY = 'fused rotary and KV append'


class PlainLayer:
    """One block's weights, not quantized; the separate matrices are views of the merged ones."""

    def __init__(self, config: ModelConfig, source: WeightSource) -> None:
        hidden, inter = config.hidden_size, config.intermediate_size
        q_size, kv_size = (heads * config.head_dim for heads in (
            config.num_attention_heads, config.num_key_value_heads))
        self.attention_norm = source.tensor('attention_norm', [hidden])
        self.qkv = source.tensor('qkv', [q_size + 2 * kv_size, hidden])
        self.q_k_v = self.qkv.split([q_size, kv_size, kv_size])
        self.o_proj = source.tensor('o_proj', [hidden, q_size])
        self.mlp_norm = source.tensor('mlp_norm', [hidden])
        self.gate_up = source.tensor('gate_up', [2 * inter, hidden])
        self.gate_and_up = self.gate_up.chunk(2)
        self.down_proj = source.tensor('down_proj', [hidden, inter])


class PlainWeights:
    """A model's weights, not quantized."""

    def __init__(self, config: ModelConfig, source: WeightSource) -> None:
        self.config = config
        self.embedding = source.tensor('embedding', [config.vocab_size, config.hidden_size])
        self.layers = [PlainLayer(config, source) for _ in range(config.num_hidden_layers)]
        self.norm = source.tensor('norm', [config.hidden_size])
        self.lm_head = source.tensor('lm_head', [config.vocab_size, config.hidden_size])


class Decoder:
    """
    A Llama decoder as it is written in PyTorch, with some of the techniques above.

    :param past: keys and values before the first token, [2, layers, Hkv, L, D].
    :param techniques: FAST_ATTENTION only beside STATIC_CACHE; FUSED_ROTARY only beside all.
    :param max_seq_len: how far the static cache reaches.
    """

    def __init__(self, weights: PlainWeights, past: Tensor, techniques: Collection[str],
                 max_seq_len: int) -> None:
        self._weights, self._config = weights, weights.config
        self._techniques = techniques
        self._position = past.shape[3]
        self._device, dtype = past.device, past.dtype
        self._rope = rotary_table(self._config.rope, self._config.head_dim, max_seq_len,
                                  self._device)
        self._cos, self._sin = (torch.cat((half, half), dim=-1).to(dtype) for half in self._rope)
        self._rms_norm = cuda.rms_norm if FUSED_NORMS in techniques else reference.rms_norm
        self._caches = [LayerCache(k, v) for k, v in zip(*past)]
        if STATIC_CACHE in techniques:
            cache = filled_cache(self._config, past, max_seq_len)
            self._caches = [cache.layer(index, 0) for index in range(len(self._caches))]

    def tokens(self, first: int) -> Iterator[int]:
        """Yield the greedy tokens that follow one, each when the host has it."""
        token_ids = torch.tensor([first], device=self._device)
        while True:
            token_ids = self.logits(token_ids).argmax(dim=-1)
            yield int(token_ids)

    @torch.inference_mode()
    def logits(self, token_ids: Tensor) -> Tensor:
        """Append one token, int64 [1], and return the logits after it, [1, V]."""
        weights = self._weights
        x = F.embedding(token_ids, weights.embedding)
        if FAST_ATTENTION in self._techniques:
            self._state = StepState.at(self._position, self._device).tensor
        for index, layer in enumerate(weights.layers):
            x = x + F.linear(self._attend(x, index, layer), layer.o_proj)
            x = x + F.linear(self._gated(x, layer), layer.down_proj)
        self._position += 1
        return F.linear(self._norm(x, weights.norm), weights.lm_head)

    def _attend(self, x: Tensor, index: int, layer: PlainLayer) -> Tensor:
        q = self._rotate_and_append(self._norm(x, layer.attention_norm), index, layer)
        cache, end = self._caches[index], self._position + 1
        if FAST_ATTENTION in self._techniques:
            scores = Scores(q.shape[2] ** -0.5)
            return cuda.attention(q, cache, self._state, scores).flatten(1)
        return attention(q, cache.k[:, :end], cache.v[:, :end])

    def _rotate_and_append(self, x: Tensor, index: int, layer: PlainLayer) -> Tensor:
        if FUSED_ROTARY in self._techniques:
            heads = F.linear(x, layer.qkv).view(1, -1, self._config.head_dim)
            return cuda.rope_append(heads, False, self._rope, self._caches[index], self._state)
        q, k, v = (values.view(1, -1, self._config.head_dim) for values in self._qkv(x, layer))
        here = slice(self._position, self._position + 1)
        q, k = (rotate(values, self._cos[here], self._sin[here]) for values in (q, k))
        self._append(index, k.transpose(0, 1), v.transpose(0, 1))
        return q

    def _append(self, index: int, k: Tensor, v: Tensor) -> None:
        cache = self._caches[index]
        if STATIC_CACHE in self._techniques:
            here = slice(self._position, self._position + 1)
            cache.k[:, here], cache.v[:, here] = k, v
        else:
            self._caches[index] = LayerCache(torch.cat((cache.k, k), dim=1),
                                             torch.cat((cache.v, v), dim=1))

    def _qkv(self, x: Tensor, layer: PlainLayer) -> Sequence[Tensor]:
        if MERGED in self._techniques:
            return F.linear(x, layer.qkv).split([len(w) for w in layer.q_k_v], dim=-1)
        return [F.linear(x, weight) for weight in layer.q_k_v]

    def _gated(self, x: Tensor, layer: PlainLayer) -> Tensor:
        x = self._norm(x, layer.mlp_norm)
        if MERGED in self._techniques:
            gate, up = F.linear(x, layer.gate_up).chunk(2, dim=-1)
        else:
            gate, up = (F.linear(x, weight) for weight in layer.gate_and_up)
        return F.silu(gate) * up

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._rms_norm(x, weight, self._config.norm_eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [1, heads, D] by cosines and sines [1, D], whose halves are equal."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from q [1, Hq, D] over all of k and v [Hkv, L, D]: [1, Hq * D]."""
    groups = q.shape[1] // k.shape[0]
    if groups > 1:
        k, v = (values.repeat_interleave(groups, dim=0) for values in (k, v))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * q.shape[2] ** -0.5
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(0, 1).flatten(1)


def filled_cache(config: ModelConfig, past: Tensor, max_seq_len: int) -> KVCache:
    """Return a static cache of one slot, with keys and values [2, layers, Hkv, L, D] in it."""
    cache = KVCache(config, 1, max_seq_len, past.dtype, past.device)
    for index, (k, v) in enumerate(zip(*past)):
        layer = cache.layer(index, 0)
        layer.k[:, :k.shape[1]], layer.v[:, :v.shape[1]] = k, v
    return cache
