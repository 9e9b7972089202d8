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
"""Each filter by hand on four tokens, all of them against transformers, seeds and ranges."""

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

from tinychat_ros.engine.sampler import filtered_probabilities, Sampler, SamplingParams
from tinychat_ros.errors import CheckpointError, InvalidRequestError

_FOUR = torch.tensor([0.5, 0.25, 0.15, 0.1])


def _filtered(**params):
    out = filtered_probabilities(_FOUR.log(), SamplingParams(**{'temperature': 1.0, **params}))
    return [round(p, 4) for p in out.tolist()]


@pytest.mark.parametrize('params, expected', [
    ({}, [0.5, 0.25, 0.15, 0.1]),
    ({'temperature': 0.5}, [0.7246, 0.1812, 0.0652, 0.029]),
    ({'top_k': 1}, [1, 0, 0, 0]),
    ({'top_k': 2}, [0.6667, 0.3333, 0, 0]),
    ({'top_k': 4}, [0.5, 0.25, 0.15, 0.1]),
    ({'top_k': 99}, [0.5, 0.25, 0.15, 0.1]),
    ({'top_p': 0.4}, [1, 0, 0, 0]),
    ({'top_p': 0.6}, [0.6667, 0.3333, 0, 0]),
    ({'top_p': 0.8}, [0.5556, 0.2778, 0.1667, 0]),
    ({'top_p': 1e-9}, [1, 0, 0, 0]),
    ({'min_p': 0.4}, [0.6667, 0.3333, 0, 0]),
    ({'min_p': 0.25}, [0.5556, 0.2778, 0.1667, 0]),
    ({'min_p': 1.0}, [1, 0, 0, 0]),
    ({'top_k': 3, 'top_p': 0.6}, [0.6667, 0.3333, 0, 0]),
])
def test_a_filter_keeps_what_it_says(params, expected):
    assert _filtered(**params) == expected


def test_equal_tokens_are_kept_together_by_top_k():
    out = filtered_probabilities(torch.tensor([1.0, 2.0, 1.0, 1.0]),
                                 SamplingParams(temperature=1.0, top_k=2))
    assert (out > 0).all()


@pytest.mark.parametrize('seed', range(20))
def test_filters_together_are_those_of_transformers(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, generator=generator) * 3
    temperature, top_p, min_p = (torch.rand(3, generator=generator) * 0.9 + 0.1).tolist()
    top_k, seen = 5 + seed, [3, 7, 7, 11]
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p / 4,
                            repetition_penalty=1.3)
    processors = LogitsProcessorList([
        RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k), TopPLogitsWarper(top_p), MinPLogitsWarper(min_p / 4)])
    expected = torch.softmax(processors(torch.tensor([seen]), logits[None].clone())[0], -1)
    penalized = Sampler(params, seen)._penalize(logits)
    torch.testing.assert_close(filtered_probabilities(penalized, params), expected)


@pytest.mark.parametrize('temperature', [1e-300, 1e-45, 1e-30, 1e-7, 1e-3])
def test_a_tiny_temperature_is_greedy_and_not_a_failure(temperature):
    sampler = Sampler(SamplingParams(temperature=temperature, seed=1))
    assert [sampler.sample(torch.tensor([1.0, 30.0, 29.0])) for _ in range(20)] == [1] * 20


def test_temperature_zero_is_greedy_and_takes_the_first_of_equals():
    sampler = Sampler(SamplingParams())
    assert sampler.sample(torch.tensor([1.0, 5.0, 5.0, 2.0])) == 1


def test_draws_follow_the_probabilities():
    sampler = Sampler(SamplingParams(temperature=1.0, seed=4))
    draws = torch.tensor([sampler.sample(_FOUR.log()) for _ in range(4000)])
    assert (draws.bincount() / 4000 - _FOUR).abs().max() < 0.03


def test_a_filtered_token_is_never_drawn():
    sampler = Sampler(SamplingParams(temperature=5.0, top_k=2, seed=4))
    assert {sampler.sample(_FOUR.log()) for _ in range(300)} == {0, 1}


def _draws(seed):
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
    return [sampler.sample(torch.zeros(1000)) for _ in range(10)]


@pytest.mark.parametrize('seed', [0, 1, 2**31, 2**63 - 1])
def test_one_seed_draws_the_same_tokens(seed):
    assert _draws(seed) == _draws(seed)


def test_other_seeds_draw_others():
    assert _draws(1) != _draws(2)


def test_a_seed_is_drawn_where_tokens_are_drawn_and_none_is_given():
    drawn, other = (SamplingParams(temperature=1.0).seeded().seed for _ in range(2))
    assert 0 <= drawn < 2**63 and drawn != other
    assert SamplingParams(temperature=1.0, seed=7).seeded().seed == 7
    assert SamplingParams(seed=7).seeded().seed == 7
    assert SamplingParams().seeded().seed is None


def test_a_sampler_leaves_the_seed_of_torch_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    _draws(1)
    assert torch.rand(1) == expected


def test_the_penalty_counts_the_prompt_and_what_was_drawn():
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [0])
    logits = torch.tensor([4.0, 3.0, 2.5, -1.0])
    assert [sampler.sample(logits) for _ in range(4)] == [1, 2, 0, 0]
    assert logits.tolist() == [4.0, 3.0, 2.5, -1.0]


@pytest.mark.parametrize('params', [{}, {'temperature': 1.0}, {'repetition_penalty': 2.0}])
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad, params):
    with pytest.raises(CheckpointError, match='logits: expected finite numbers'):
        Sampler(SamplingParams(**params), [1]).sample(torch.tensor([1.0, bad, 2.0]))


@pytest.mark.parametrize('params, token', [({}, 1), ({'temperature': 1.0, 'seed': 1}, 1)])
def test_a_token_that_was_ruled_out_does_no_harm(params, token):
    assert Sampler(SamplingParams(**params)).sample(torch.tensor([-math.inf, 1.0])) == token


@pytest.mark.parametrize('name, values', [
    ('temperature', [-0.1, 100.1, math.nan, math.inf, '1', None, True]),
    ('top_k', [-1, 2**31, 1.5, '3', None]),
    ('top_p', [0.0, -1.0, 1.1, math.nan, '0.5', None]),
    ('min_p', [-0.1, 1.1, math.nan, [0.1]]),
    ('repetition_penalty', [0.0, -1.0, 101.0, math.nan, None]),
    ('seed', [-1, 2**63, 1.5, '1', True]),
])
def test_a_value_out_of_its_range_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(InvalidRequestError, match=f'^{name}: expected'):
            SamplingParams(**{name: value})


@pytest.mark.parametrize('config, expected', [
    ({}, SamplingParams()),
    ({'do_sample': False, 'temperature': 0.6, 'top_p': 0.9}, SamplingParams(top_p=0.9)),
    ({'do_sample': True}, SamplingParams(temperature=1.0)),
    ({'do_sample': True, 'temperature': 0.6, 'top_k': 50, 'top_p': 0.9, 'eos_token_id': 2},
     SamplingParams(temperature=0.6, top_k=50, top_p=0.9)),
    ({'do_sample': True, 'temperature': None, 'top_p': None}, SamplingParams(temperature=1.0)),
    ({'repetition_penalty': 1.1}, SamplingParams(repetition_penalty=1.1)),
    ({'temperature': 0.9, 'top_p': 0.6, 'max_length': 4096}, SamplingParams(top_p=0.6)),
    ({'do_sample': None, 'temperature': 0.9, 'min_p': None, 'top_k': None}, SamplingParams()),
    ({'do_sample': True, 'temperature': 1, 'min_p': 0.05},
     SamplingParams(temperature=1, min_p=0.05)),
])
def test_what_a_checkpoint_recommends_is_taken(config, expected):
    assert SamplingParams.from_generation_config(config) == expected


@pytest.mark.parametrize('config', [{'top_p': 7}, {'do_sample': True, 'temperature': 'hot'},
                                    {'top_k': 2.5}, {'repetition_penalty': [1]},
                                    {'do_sample': 'yes'}, {'do_sample': 1}])
def test_a_recommendation_out_of_range_is_an_error_of_the_checkpoint(config):
    with pytest.raises(CheckpointError, match='generation_config.json: '):
        SamplingParams.from_generation_config(config)
