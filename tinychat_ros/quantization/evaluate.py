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
"""Perplexity: how well a model predicts texts that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor
import torch.nn.functional as F

from tinychat_ros.errors import ConfigError
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.causal_lm import CausalLM

# The logits of one piece over a vocabulary of 128,000 take 131 MB.
_PIECE = 256


@dataclass(frozen=True)
class Perplexity:
    """
    What :func:`perplexity` found.

    :param perplexity: exp of the mean negative log-likelihood of a token; infinite or NaN where
        the model's logits are.
    :param tokens: how many tokens were predicted.
    """

    perplexity: float
    tokens: int


def perplexity(model: CausalLM, token_lists: Sequence[Sequence[int]],
               device: torch.device) -> Perplexity:
    """
    Predict every token of each text but the first from those before it.

    :param token_lists: texts that know nothing of each other, none longer than the context that
        the model was loaded with. Those of one token and less count nothing.
    :raises ConfigError: no text has two tokens, or one has what the model does not embed.
    """
    longest = max(map(len, token_lists), default=0)
    if longest < 2:
        raise ConfigError(f'text: expected one of 2 tokens or more, got {len(token_lists)} texts '
                          f'of at most {longest}')
    largest, vocab_size = max(chain.from_iterable(token_lists)), model.config.vocab_size
    if largest >= vocab_size:
        raise ConfigError(f'text: expected tokens below {vocab_size}, as many as the model '
                          f'embeds, got {largest}')
    cache = KVCache(model.config, 1, longest, model.dtype, device)
    losses = chain.from_iterable(_losses(model, cache, ids, device) for ids in token_lists)
    total = sum(loss.double().sum() for loss in losses)
    tokens = sum(max(len(ids) - 1, 0) for ids in token_lists)
    return Perplexity((total / tokens).exp().item(), tokens)


def token_lists(texts: Sequence[str], encode: Callable[[str], list[int]], context: int,
                separate: bool) -> list[list[int]]:
    """
    Return the ids that :func:`perplexity` takes of texts, at most ``context`` in each list.

    :param encode: ids of a text, with what the tokenizer puts around one, such as BOS.
    :param separate: make each text one list, cut to the context. Otherwise cut it into windows
        one after the other, the last as long as what remains, as is usual for WikiText-2.
    """
    encoded = map(encode, texts)
    if separate:
        return [ids[:context] for ids in encoded]
    return [ids[start:start + context] for ids in encoded
            for start in range(0, len(ids), context)]


def _losses(model: CausalLM, cache: KVCache, ids: Sequence[int],
            device: torch.device) -> Iterator[Tensor]:
    """Yield the negative log-likelihoods of a text, one tensor fp32 per piece."""
    for start in range(0, len(ids) - 1, _PIECE):
        piece = torch.tensor(ids[start:start + _PIECE + 1], device=device)
        # The cache holds what an earlier text left; nothing reads it beyond the present position.
        logits = model.forward(piece[:-1], cache, 0, start, all_logits=True)
        yield F.cross_entropy(logits, piece[1:], reduction='none')
