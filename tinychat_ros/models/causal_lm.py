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
"""A decoder from token ids to logits; its architecture is what its ModelConfig says."""

from __future__ import annotations

from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.errors import CheckpointError, KernelError
from tinychat_ros.kernels import ops
from tinychat_ros.kernels.linear import (
    activation_group, int4_groups, int8_rows, Linear, prepare, RuntimeWeight)
from tinychat_ros.kernels.operands import Candidates
from tinychat_ros.kernels.packing import CudaTiles, Int8Weight
from tinychat_ros.models.block import Block, load_norm, Positions
from tinychat_ros.models.clip import VisionTower
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.layers import WeightSource


class CausalLM:
    """
    A decoder; one sequence at a time, its past in a slot of the KV cache.

    What it is made of can be read: ``config``, ``embedding`` [V, H], ``blocks``, ``lm_head``
    and, of a model that sees, ``vision``.
    """

    def __init__(self, config: ModelConfig, weights: WeightSource, max_seq_len: int,
                 device: torch.device) -> None:
        hidden, vocab = config.hidden_size, config.vocab_size
        self.config = config
        names = config.names
        self.embedding = weights.tensor(f'{names.embedding}.weight', [vocab, hidden])
        positions = Positions.of(config, max_seq_len, device)
        self.blocks = [Block.load(config, weights, i, positions)
                       for i in range(config.num_hidden_layers)]
        self._norm = load_norm(config, weights, names.norm)
        self.dtype = self._norm.weight.dtype
        # Some tied checkpoints store the head all the same; it then equals the embedding.
        if config.tie_word_embeddings:
            self.lm_head = Linear(self.embedding)
        else:
            self.lm_head = weights.linears([names.lm_head], [vocab], hidden)[0]
        self.vision = config.vision and VisionTower(config.vision, weights, hidden)
        self._chain_prefetches()

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, cache: KVCache, slot: int, start: int,
                all_logits: bool = False) -> Tensor:
        """
        Append tokens to a slot and return what may come next.

        :param token_ids: int64 [T], at positions start .. start + T - 1.
        :param all_logits: return the logits after every token instead of after the last.
        :returns: logits fp32 [V], or [T, V].
        """
        x = self.hidden(token_ids, cache, slot, start)
        return self.logits(x) if all_logits else self.logits(x[-1:])[0]

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Apply the LM head to x [T, H]: fp32 [T, V]."""
        return ops.lm_head(x, self._norm, self.lm_head, self.config.final_logit_softcapping)

    @torch.inference_mode()
    def hidden(self, token_ids: Tensor, cache: KVCache, slot: int, start: ops.Start,
               interrupted: Callable[[], bool] = lambda: False,
               features: Optional[Tensor] = None) -> Optional[Tensor]:
        """
        Append tokens, int32 or int64 [T], to a slot.

        :param interrupted: asked before every block.
        :param features: [count, H], what stands where token ids are negative; see VisionTower.
        :returns: what the LM head reads, [T, H]; None when it was interrupted.
        """
        if isinstance(start, int):
            start = ops.StepState.at(start, token_ids.device)
        x = self._embedded(token_ids, features)
        for i, block in enumerate(self.blocks):
            if interrupted():
                return None
            x = block.forward(x, cache.layer(i, slot), start)
        return x

    def _embedded(self, token_ids: Tensor, features: Optional[Tensor]) -> Tensor:
        known = token_ids if features is None else token_ids.clamp(min=0)
        x = ops.embedding(known, self.embedding, self.dtype, self.config.embedding_scale)
        if features is not None:
            x[token_ids < 0] = features
        return x

    @torch.inference_mode()
    def candidates(self, x: Tensor) -> Candidates:
        """Return what may come after the token of x [1, H], for the sampler on the device."""
        return ops.candidates(x, self._norm, self.lm_head,
                              self.config.final_logit_softcapping)

    def quantize_head(self, dtype: str, int8_activations: Optional[bool] = False,
                      packed: Optional[RuntimeWeight] = None) -> None:
        """
        Round a plain LM head.

        :param dtype: 'int8', with a scale for each token of the vocabulary, or 'int4', in groups.
        :param int8_activations: see :func:`activation_group`.
        :param packed: what came of it before, if it is known.
        :raises CheckpointError: it cannot be rounded to int4.
        """
        weight, bias = self.lm_head.weight, self.lm_head.bias
        if not isinstance(weight, Tensor):
            return
        try:
            rounded = packed or (int8_rows if dtype == 'int8' else int4_groups)(weight)
        except (KernelError, ValueError) as error:
            raise CheckpointError(f'lm_head: {error}') from error
        group = activation_group(rounded, int8_activations, self.dtype)
        self.lm_head = prepare(rounded, bias, activation_group=group, dtype=self.dtype)
        self._chain_prefetches()

    def _chain_prefetches(self) -> None:
        chain_prefetches([*(linear for block in self.blocks for linear in block.linears()),
                          self.lm_head])


def chain_prefetches(linears: Sequence[Linear]) -> None:
    """Let the kernel of each bring the weights of the one behind it into the cache."""
    for linear, following in zip(linears, linears[1:]):
        if isinstance(linear.weight, CudaTiles):
            linear.weight.next = _first_read(following.weight)


def _first_read(weight: RuntimeWeight) -> Optional[Tensor]:
    if isinstance(weight, CudaTiles):
        return weight.records
    if isinstance(weight, Int8Weight):
        return weight.qweight
    return weight if isinstance(weight, Tensor) else None
