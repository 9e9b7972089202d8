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
"""Runs a model on a slot of its KV cache, token by token; the sampler is on the host."""

from __future__ import annotations

from typing import Callable, Iterator, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.engine.sampler import Sampler, SamplingParams
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.causal_lm import CausalLM


class ModelRunner:
    """
    A model, its KV cache and the device they are on.

    Answers in several slots may be under way at once: each goes on when its next token is asked
    for.
    """

    def __init__(self, model: CausalLM, cache: KVCache, device: torch.device) -> None:
        self._model = model
        self._cache = cache
        self._device = device

    def prefill(self, token_ids: Sequence[int], slot: int, start: int,
                interrupted: Callable[[], bool] = lambda: False,
                features: Optional[Tensor] = None) -> Optional[Tensor]:
        """
        Append tokens to a slot.

        :param interrupted: asked between blocks.
        :param features: [count, H], what stands where token ids are negative.
        :returns: what :meth:`tokens` takes; None when it was interrupted.
        """
        return self._forward(token_ids, slot, start, interrupted, features)

    def tokens(self, last: Tensor, slot: int, position: int, sampling: SamplingParams,
               context: Sequence[int],
               interrupted: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """
        Yield the tokens that follow; asking for the next one appends the one before to the slot.

        :param last: what :meth:`prefill` returned.
        :param position: where the first token goes. One is asked for while there is room.
        :param context: tokens that the repetition penalty counts as seen.
        :param interrupted: ends them, while the token before is being appended.
        """
        sampler = Sampler(sampling, context)
        while last is not None:
            token = sampler.sample(last)
            yield token
            last = self._forward([token], slot, position, interrupted)
            position += 1

    def _forward(self, token_ids: Sequence[int], slot: int, start: int,
                 interrupted: Callable[[], bool],
                 features: Optional[Tensor] = None) -> Optional[Tensor]:
        """Return the logits fp32 [V] after the last token, or None."""
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self._device)
        x = self._model.hidden(ids, self._cache, slot, start, interrupted, features)
        return None if x is None else self._model.logits(x[-1:])[0]
