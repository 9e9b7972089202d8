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
"""The trained story models: a published text, token for token."""

import pytest
from tiny_models import data_path
import torch
from transformers import AutoModelForCausalLM

from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import FinishReason, Request


def _generate(model, **fields):
    engine = Engine.load(data_path(f'models/{model}'), device='cpu', num_slots=1)
    return list(engine.generate(Request(raw=True, **fields)))


def test_stories260k_prints_the_text_that_its_author_published():
    golden = data_path('golden/stories260K_greedy200.txt').read_text()
    chunks = _generate('stories260K', max_new_tokens=200)
    result = chunks[-1].result
    assert result.text == golden
    assert ''.join(chunk.text for chunk in chunks) == golden
    assert result.prompt_tokens == 1, 'BOS alone'
    assert (result.completion_tokens, result.finish_reason) == (200, FinishReason.LENGTH)


def test_its_tokens_are_those_that_transformers_generates():
    path = data_path('models/stories260K')
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    expected = model.generate(torch.tensor([[1]]), max_new_tokens=100, do_sample=False)[0, 1:]
    result = _generate('stories260K', max_new_tokens=100)[-1].result
    assert list(result.token_ids) == expected.tolist()


@pytest.mark.parametrize('options', [{'prefill_chunk': 3}, {'dtype': 'bfloat16'}, {}])
def test_the_same_prompt_gives_the_same_tokens_every_time(options):
    engine = Engine.load(data_path('models/stories260K'), device='cpu', **options)
    request = {'text': 'Once upon a time, Lily met a robot', 'raw': True, 'max_new_tokens': 30}
    first, again = (list(engine.generate(Request(**request)))[-1].result for _ in range(2))
    assert again.cached_tokens == again.prompt_tokens - 1
    assert first.token_ids == again.token_ids


def test_a_raw_text_goes_on_with_the_space_that_belongs_there():
    result = _generate('stories260K', text='Once upon a', max_new_tokens=3)[-1].result
    assert result.text.startswith(' time')


def test_padding_the_mlp_changes_nothing():
    plain, padded = (_generate(name, max_new_tokens=60)[-1].result.token_ids
                     for name in ('stories260K', 'stories260K-pad192'))
    assert plain == padded
