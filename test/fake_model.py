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
"""A fake in the place of a model: what it answers is a function of the tokens in its slot."""

from __future__ import annotations

from typing import Any, Callable, Iterator, Optional, Sequence

from tiny_models import SPECIAL_TOKENS
from tinychat_ros.engine.sampler import Sampler, SamplingParams
import torch
from torch import Tensor

EOS, _USER, _ASSISTANT = (
    256 + SPECIAL_TOKENS.index(token) for token in ('</s>', '<|user|>', '<|assistant|>'))


def echo(tokens: Sequence[int]) -> int:
    """Repeat what stands between the last <|user|> and its </s>, then end."""
    user = len(tokens) - 1 - tokens[::-1].index(_USER)
    question = tokens[user + 1:tokens.index(EOS, user)]
    answered = tokens[::-1].index(_ASSISTANT)
    return question[answered] if answered < len(question) else EOS


def hashed(tokens: Sequence[int]) -> int:
    """Return a capital letter that depends on every token so far."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1000003
    return ord('A') - ord('!') + state % 26


class FakeRunner:
    """
    Stands for a model runner: the next token is a function of all tokens that lie in the slot.

    A token fed to the wrong slot or position therefore changes what comes out.

    :param next_token: (tokens in the slot) to the next token.
    """

    def __init__(self, next_token: Callable[[Sequence[int]], int], vocab_size: int) -> None:
        self.slots: dict[int, list[int]] = {}
        self.prefilled: list[int] = []
        self._next_token = next_token
        self._vocab_size = vocab_size

    def prefill(self, token_ids: Sequence[int], slot: int, start: int,
                interrupted: Callable[[], bool] = lambda: False,
                features: Optional[Tensor] = None) -> Any:
        """Write tokens over what lies in the slot from ``start`` on."""
        if interrupted():
            return None
        self.prefilled.append(len(token_ids))
        return self._append(token_ids, slot, start)

    def tokens(self, last: Tensor, slot: int, position: int, sampling: SamplingParams,
               context: Sequence[int],
               interrupted: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """Write each token as the next one is asked for, unless that is interrupted."""
        sampler = Sampler(sampling, context)
        while True:
            token = sampler.sample(last)
            yield token
            if interrupted():
                return
            last = self._append([token], slot, position)
            position += 1

    def _append(self, token_ids: Sequence[int], slot: int, start: int) -> Tensor:
        tokens = self.slots.setdefault(slot, [])
        assert start <= len(tokens), 'a gap in the KV cache'
        tokens[start:] = token_ids
        logits = torch.zeros(self._vocab_size)
        logits[self._next_token(tokens)] = 100.0
        return logits
