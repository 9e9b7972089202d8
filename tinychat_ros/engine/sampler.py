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
"""Chooses the next token from the logits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
import math
import secrets
from typing import Any, Mapping, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.errors import CheckpointError, InvalidRequestError

# Below it, logits divided by it would overflow fp32; it is greedy long before.
_LOWEST_TEMPERATURE = 1e-6

# field: (lowest, highest, lowest itself allowed)
_RANGES = {
    'temperature': (0.0, 100.0, True),
    'top_k': (0, 2**31 - 1, True),
    'top_p': (0.0, 1.0, False),
    'min_p': (0.0, 1.0, True),
    'repetition_penalty': (0.0, 100.0, False),
}


@dataclass(frozen=True)
class SamplingParams:
    """
    How a token is drawn. The defaults draw greedily.

    :param temperature: divides the logits; 0 takes the most probable token.
    :param top_k: keep the k most probable tokens; 0 keeps all.
    :param top_p: keep the smallest set of tokens whose probabilities reach p; 1 keeps all.
    :param min_p: drop tokens less probable than p times the best one; 0 drops none.
    :param repetition_penalty: divides positive and multiplies negative logits of tokens that were
        there before (Keskar et al., CTRL, 2019); 1 is none.
    :param seed: same seed, same tokens; None has the engine draw one for each answer.
    :raises InvalidRequestError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: Optional[int] = None

    def __post_init__(self) -> None:
        for name, (low, high, closed) in _RANGES.items():
            value = getattr(self, name)
            _check_type(name, value, (int,) if name == 'top_k' else (int, float))
            if not (low < value <= high or (closed and value == low)):
                bracket = '[' if closed else '('
                raise InvalidRequestError(
                    f'{name}: expected a value in {bracket}{low}, {high}], got {value}')
        if self.seed is None:
            return
        _check_type('seed', self.seed, (int,))
        if not 0 <= self.seed < 2**63:
            raise InvalidRequestError(f'seed: expected a value in [0, 2^63), got {self.seed}')

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingParams:
        """
        Take what a checkpoint's generation_config.json recommends.

        As in Hugging Face's generate, it is greedy unless ``do_sample`` is true, whatever
        temperature is named beside it; null is not said.

        :raises CheckpointError: it recommends a value out of its range.
        """
        do_sample = config.get('do_sample')
        if not isinstance(do_sample, (bool, type(None))):
            raise CheckpointError('generation_config.json: do_sample: expected true or false, '
                                  f'got {do_sample!r}')
        names = {f.name for f in fields(cls)} - {'seed'}
        values = {name: config[name] for name in names if config.get(name) is not None}
        if not do_sample:
            values['temperature'] = 0.0
        else:
            values.setdefault('temperature', 1.0)
        try:
            return cls(**values)
        except InvalidRequestError as error:
            raise CheckpointError(f'generation_config.json: {error}') from None

    def seeded(self) -> SamplingParams:
        """Return these with a seed: a fresh one where tokens are drawn and none is given."""
        if self.seed is not None or self.temperature == 0.0:
            return self
        return replace(self, seed=secrets.randbits(63))


class Sampler:
    """
    Draws the tokens of one answer.

    :param context: token ids that the repetition penalty counts as seen.
    """

    def __init__(self, params: SamplingParams, context: Sequence[int] = ()) -> None:
        self._params = params
        self._seen = set(context) if params.repetition_penalty != 1.0 else None
        self._generator = torch.Generator()
        self._generator.manual_seed(params.seed or 0)

    def sample(self, logits: Tensor) -> int:
        """
        Draw a token id from logits fp32 [V].

        :raises CheckpointError: they are not numbers, since the weights overflow the dtype.
        """
        if not math.isfinite(best := float(logits.max())):
            raise not_finite(best)
        logits = self._penalize(logits)
        if self._params.temperature == 0.0:
            token = int(logits.argmax())
        else:
            probabilities = filtered_probabilities(logits, self._params)
            token = int(torch.multinomial(probabilities.cpu(), 1, generator=self._generator))
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _penalize(self, logits: Tensor) -> Tensor:
        if not self._seen:
            return logits
        index = torch.tensor(sorted(self._seen), device=logits.device)
        seen, penalty = logits[index], self._params.repetition_penalty
        return logits.index_copy(0, index, torch.where(seen > 0, seen / penalty, seen * penalty))


def not_finite(got: object) -> CheckpointError:
    """Return the error for logits that are no numbers."""
    return CheckpointError(f'logits: expected finite numbers, got {got}; the weights overflow, in '
                           'fp16 perhaps more than in float32')


def _check_type(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise InvalidRequestError(
            f"{name}: expected {' or '.join(k.__name__ for k in kinds)}, got {value!r}")


def filtered_probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """
    Return fp32 [V] probabilities after temperature, top-k, top-p and min-p, in this order.

    The order and the renormalising between the steps are those of Hugging Face's generate. The
    most probable token always stays.
    """
    logits = (logits - logits.max()) / max(params.temperature, _LOWEST_TEMPERATURE)
    if 0 < params.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], float('-inf'))
    if params.top_p < 1.0:
        ordered, index = torch.softmax(logits, -1).sort(descending=True, stable=True)
        # A token goes when those before it already reach p.
        dropped = ordered.cumsum(0) - ordered >= params.top_p
        logits = logits.index_fill(0, index[dropped], float('-inf'))
    probabilities = torch.softmax(logits, -1)
    if params.min_p > 0.0:
        probabilities = probabilities.masked_fill(
            probabilities < params.min_p * probabilities.max(), 0.0)
    return probabilities / probabilities.sum()
