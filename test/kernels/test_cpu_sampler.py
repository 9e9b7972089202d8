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
"""The sampler for the CPU draws what engine/sampler.py allows."""

from __future__ import annotations

from cpu_memory import state_of
import pytest
from sampler_oracle import acceptable_tokens, FILTERS, packed, params_of, penalized
import torch

from tinychat_ros.engine.sampler import filtered_probabilities, SamplingParams
from tinychat_ros.kernels import extension

kernels = extension.load()
if kernels is None:
    pytest.skip(extension.why_absent(), allow_module_level=True)

NAN, INFINITY = float('nan'), float('inf')

every_filter = pytest.mark.parametrize('name', FILTERS)


class Run:
    """Draws token after token from the same logits."""

    def __init__(self, logits, params, seen=(), step=0, ring_size=4):
        self._logits, self._params = logits, packed(params)
        self.seen = torch.zeros(len(logits), dtype=torch.uint8)
        self.seen[list(seen)] = 1
        self.state = state_of(slot=3, position=70, token=9, step=step)
        self.ring = torch.zeros(ring_size, dtype=torch.int64)

    def draw(self):
        """Draw a token and return what the state says of it."""
        kernels.cpu_sample(
            logits=self._logits.data_ptr(), params=self._params.data_ptr(),
            seen=self.seen.data_ptr(), state=self.state.data_ptr(), ring=self.ring.data_ptr(),
            ring_size=len(self.ring), vocab=len(self._logits))
        return self.state.tolist()[2]


def draw(logits, params, **options):
    return Run(logits, params, **options).draw()


def check(logits, params, seen=(), step=0):
    """Draw one token; the oracle says which."""
    marks = torch.zeros(len(logits), dtype=torch.bool)
    marks[list(seen)] = True
    assert draw(logits, params, seen=seen, step=step) in acceptable_tokens(
        logits, params, marks, step)


def random_logits(vocab):
    return torch.randn(vocab) * 3 - 4


@every_filter
@pytest.mark.parametrize('vocab', [1, 15, 105, 512, 33000])
def test_the_filters_are_those_of_the_engine(vocab, name):
    for step in range(3):
        check(random_logits(vocab), params_of(name), seen=range(0, vocab, 7), step=step)


@every_filter
def test_a_logit_of_minus_infinity_is_never_drawn(name):
    logits = torch.full((40,), -INFINITY)
    logits[[5, 17, 39]] = torch.tensor([0.5, 1.0, 0.75])
    for step in range(4):
        check(logits, params_of(name), step=step)


@every_filter
def test_equal_logits_stay_together(name):
    """All are as probable as the best, so that no filter drops one."""
    logits = torch.full((50,), -2.5)
    drawn = {draw(logits, params_of(name), step=step) for step in range(6)}
    assert drawn == {draw(logits, params_of('plain'), step=step) for step in range(6)}
    assert len(drawn) > 3


def test_ties_at_the_last_place_of_top_k_stay():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 1.0])
    params = SamplingParams(temperature=1.0, top_k=2, seed=1)
    assert {draw(logits, params, step=step) for step in range(40)} == {1, 2, 3, 4}


def test_a_seed_and_a_step_decide_what_is_drawn():
    logits = torch.zeros(512)
    drawn = [[draw(logits, SamplingParams(temperature=1.0, seed=seed), step=step)
              for step in range(8)] for seed in (1, 1, 1 + 2**32)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 5
    assert sum(a == b for a, b in zip(drawn[0], drawn[2])) < 3


def test_tokens_come_as_often_as_they_are_probable():
    logits, params, draws = torch.randn(16), SamplingParams(temperature=1.0, seed=7), 3000
    run = Run(logits, params, ring_size=draws)
    for _ in range(draws):
        run.draw()
    counts = torch.bincount(run.ring & 2**32 - 1, minlength=16)
    expected = filtered_probabilities(logits, params) * draws
    # Of 1000 samplers without fault one exceeds it.
    assert ((counts - expected) ** 2 / expected).sum() < 37.7


@pytest.mark.parametrize('vocab', [1, 16, 512])
def test_greedy_takes_the_first_of_the_best(vocab):
    logits = torch.randn(vocab)
    logits[[vocab // 2, vocab - 1]] = 9.0
    assert draw(logits, SamplingParams()) == vocab // 2


@pytest.mark.parametrize('penalty', [0.5, 1.0, 3.0])
def test_greedy_takes_the_best_after_the_penalty(penalty):
    marks = torch.zeros(105, dtype=torch.bool)
    marks[[3, 40]] = True
    logits = torch.full((105,), -8.0)
    logits[[3, 40, 104]] = torch.tensor([6.0, -5.0, 5.0])
    for given in (logits, -logits.abs()):
        expected = int(penalized(given, penalty, marks).argmax())
        assert draw(given, SamplingParams(repetition_penalty=penalty), seen=(3, 40)) == expected


@pytest.mark.parametrize('params', [
    SamplingParams(), SamplingParams(repetition_penalty=2.0),
    SamplingParams(temperature=1.0, top_k=3, top_p=0.9)], ids=['greedy', 'penalty', 'filters'])
@pytest.mark.parametrize('value', [NAN, INFINITY], ids=str)
@pytest.mark.parametrize('place', [0, 31])
def test_logits_that_overflowed_draw_no_token(value, place, params):
    logits = torch.randn(32)
    logits[place] = value
    run = Run(logits, params, step=6)
    assert run.draw() == -1
    assert not run.seen.any()
    assert run.ring.tolist() == [0, 0, 7 << 32 | 2**32 - 1, 0]
    assert draw(torch.full((20,), -INFINITY), params) == -1


def test_the_state_goes_on_and_the_ring_tells_every_step():
    run = Run(torch.randn(105), SamplingParams(temperature=1.0, seed=2), seen=(8,), ring_size=3)
    tokens = [run.draw() for _ in range(5)]
    assert run.state.tolist() == [3, 75, tokens[-1], 5]
    assert run.ring.tolist() == [4 << 32 | tokens[3], 5 << 32 | tokens[4], 3 << 32 | tokens[2]]
    assert run.seen.nonzero()[:, 0].tolist() == sorted({8, *tokens})
