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
"""The sampler for CUDA draws what engine/sampler.py allows."""

from __future__ import annotations

from backend import address, Backend
import pytest
from sampler_oracle import (
    acceptable_tokens, candidates, FILTERS, packed, params_of, penalized, philox)
import torch
from torch import Tensor

from tinychat_ros.engine.sampler import filtered_probabilities, SamplingParams

NAN, INFINITY = float('nan'), float('inf')


class Run:
    """
    Draws token after token from the same logits.

    :param seen: tokens that the repetition penalty is for.
    :param step: of the first draw.
    """

    def __init__(self, kernels: Backend, logits: Tensor, params: SamplingParams,
                 seen: tuple[int, ...] = (), step: int = 0, ring_size: int = 4) -> None:
        self._kernels, self._first_step = kernels, step
        self._vocab, self._logits = len(logits), kernels.put(logits)
        self._best = kernels.put(candidates(logits))
        self._params = kernels.put(packed(params))
        marks = torch.zeros(len(logits), dtype=torch.uint8)
        marks[list(seen)] = 1
        self.seen = kernels.put(marks)
        self.state = kernels.state(slot=3, position=70, token=9, step=step)
        self.ring = torch.zeros(ring_size, dtype=torch.int64,
                                pin_memory=kernels.device.type == 'cuda')

    def draw(self) -> int:
        """Draw a token and return what the state says of it."""
        self._kernels.module.sample(
            logits=address(self._logits), best=address(self._best), params=address(self._params),
            seen=address(self.seen), state=address(self.state), ring=address(self.ring),
            ring_size=len(self.ring), vocab=self._vocab, stream=self._kernels.stream)
        return self.state.tolist()[2]


def draw(kernels: Backend, logits: Tensor, params: SamplingParams, **options: object) -> int:
    """Draw one token."""
    return Run(kernels, logits, params, **options).draw()


def check(kernels: Backend, logits: Tensor, params: SamplingParams, seen: tuple[int, ...] = (),
          step: int = 0) -> None:
    """Draw one token; the oracle says which."""
    marks = torch.zeros(len(logits), dtype=torch.bool)
    marks[list(seen)] = True
    token = draw(kernels, logits, params, seen=seen, step=step)
    assert token in acceptable_tokens(logits, params, marks, step)


def random_logits(vocab: int) -> Tensor:
    """Return logits whose probabilities are spread as those of a language model."""
    return torch.randn(vocab) * 3 - 4


@pytest.mark.parametrize('counter, key, words', [
    (0, 0, '6627e8d5 e169c58d bc57ac4c 9b00dbd8'),
    (2**32 - 1, 2**32 - 1, '408f276d 41c83b0e a20bc7c6 6d5451fd'),
])
def test_the_oracle_has_the_random_numbers_of_random123(counter, key, words):
    assert ' '.join(f'{word:08x}' for word in philox((counter,) * 4, (key, key))) == words


@pytest.mark.parametrize('name', FILTERS)
def test_the_filters_are_those_of_the_engine(kernels, name):
    for step in range(3):
        check(kernels, random_logits(105), params_of(name), seen=(0, 3, 50, 104), step=step)


@pytest.mark.parametrize('vocab', [1, 15, 16, 31, 512])
@pytest.mark.parametrize('name', ['plain', 'all', 'penalty'])
def test_any_vocabulary_is_drawn_from(kernels, vocab, name):
    check(kernels, random_logits(vocab), params_of(name), seen=(0, vocab - 1))


@pytest.mark.parametrize('name', FILTERS)
def test_a_large_vocabulary_is_drawn_from(one_order, name):
    for step in range(2):
        check(one_order, random_logits(33000), params_of(name), seen=tuple(range(0, 33000, 7)),
              step=step)


def test_a_seed_and_a_step_decide_what_is_drawn(one_order):
    logits = torch.zeros(512)
    drawn = [[draw(one_order, logits, SamplingParams(temperature=1.0, seed=seed), step=step)
              for step in range(8)] for seed in (1, 1, 1 + 2**32)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 5
    assert sum(a == b for a, b in zip(drawn[0], drawn[2])) < 3


def test_tokens_come_as_often_as_they_are_probable(one_order):
    logits, params, draws = torch.randn(16), SamplingParams(temperature=1.0, seed=7), 300
    run = Run(one_order, logits, params, ring_size=draws)
    for _ in range(draws):
        run.draw()
    counts = torch.bincount(run.ring & 2**32 - 1, minlength=16)
    expected = filtered_probabilities(logits, params) * draws
    # Of 1000 samplers without fault one exceeds it.
    assert ((counts - expected) ** 2 / expected).sum() < 37.7


def check_many_best(kernels: Backend) -> None:
    """
    Draw from 40 equal tokens, which hold more of the mass than top_p asks for.

    They fill the 32 bits of their bin several times over, the others not those of any bin.
    """
    logits = torch.linspace(-2, -4, 440)
    logits[::11] = 0.0
    for step in range(16):
        params = SamplingParams(temperature=1.0, top_p=0.6, seed=3)
        assert draw(kernels, logits, params, step=step) % 11 == 0


def test_masses_beyond_32_bits_are_added(one_order):
    check_many_best(one_order)


@pytest.mark.parametrize('vocab', [1, 16, 31, 512, 33000])
def test_greedy_takes_the_first_of_the_best(one_order, vocab):
    logits = torch.randn(vocab)
    logits[[vocab // 2, vocab - 1]] = 9.0
    assert draw(one_order, logits, SamplingParams()) == vocab // 2


@pytest.mark.parametrize('penalty', [0.5, 1.0, 3.0])
def test_greedy_takes_the_best_after_the_penalty(kernels, penalty):
    """Tokens 3 and 40 are seen; of them one is negative, and 3 is the best without a penalty."""
    logits = torch.full((105,), -8.0)
    logits[[3, 40, 104]] = torch.tensor([6.0, -5.0, 5.0])
    marks = torch.zeros(105, dtype=torch.bool)
    marks[[3, 40]] = True
    expected = int(penalized(logits, penalty, marks).argmax())
    assert expected == (104 if penalty == 3.0 else 3)
    params = SamplingParams(repetition_penalty=penalty)
    assert draw(kernels, logits, params, seen=(3, 40)) == expected
    logits = -logits.abs()
    expected = int(penalized(logits, penalty, marks).argmax())
    assert draw(kernels, logits, params, seen=(3, 40)) == expected


@pytest.mark.parametrize('params', [
    SamplingParams(), SamplingParams(repetition_penalty=2.0),
    SamplingParams(temperature=1.0, top_k=3, top_p=0.9)], ids=['greedy', 'penalty', 'filters'])
@pytest.mark.parametrize('value', [NAN, INFINITY], ids=str)
@pytest.mark.parametrize('place', [0, 31])
def test_logits_that_overflowed_draw_no_token(kernels, value, place, params):
    logits = torch.randn(32)
    logits[place] = value
    run = Run(kernels, logits, params, step=6)
    assert run.draw() == -1
    assert not run.seen.any()
    assert run.ring.tolist() == [0, 0, 7 << 32 | 2**32 - 1, 0]
    assert draw(kernels, torch.full((20,), -INFINITY), params) == -1


@pytest.mark.parametrize('name', FILTERS)
def test_a_logit_of_minus_infinity_is_never_drawn(one_order, name):
    logits = torch.full((40,), -INFINITY)
    logits[[5, 17, 39]] = torch.tensor([0.5, 1.0, 0.75])
    for step in range(4):
        check(one_order, logits, params_of(name), step=step)


@pytest.mark.parametrize('name', FILTERS)
def test_equal_logits_stay_together(one_order, name):
    """All are as probable as the best, so that no filter drops one."""
    logits = torch.full((50,), -2.5)
    drawn = {draw(one_order, logits, params_of(name), step=step) for step in range(6)}
    plain = {draw(one_order, logits, params_of('plain'), step=step) for step in range(6)}
    assert drawn == plain
    assert len(drawn) > 3


def test_ties_at_the_last_place_of_top_k_stay(one_order):
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 1.0])
    params = SamplingParams(temperature=1.0, top_k=2, seed=1)
    drawn = {draw(one_order, logits, params, step=step) for step in range(40)}
    assert drawn == {1, 2, 3, 4}


def test_the_state_goes_on_and_the_ring_tells_every_step(kernels):
    logits = torch.randn(105)
    run = Run(kernels, logits, SamplingParams(temperature=1.0, seed=2), seen=(8,), ring_size=3)
    tokens = [run.draw() for _ in range(5)]
    assert run.state.tolist() == [3, 75, tokens[-1], 5]
    assert run.ring.tolist() == [4 << 32 | tokens[3], 5 << 32 | tokens[4], 3 << 32 | tokens[2]]
    assert run.seen.nonzero()[:, 0].tolist() == sorted({8, *tokens})
