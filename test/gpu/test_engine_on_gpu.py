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
"""The engine on a GPU says what it says on the CPU, whose fp32 is the oracle."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_models import (  # noqa: F401
    data_path, load_folder, one_thread, quantize_folder, run_model)
import torch

from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import Request, Result
from tinychat_ros.engine.sampler import SamplingParams

# Where a model is, the group size that its linears are rounded to 4 bits with, and a text with
# which every next token leads by 0.05 and more, since fp16 rounds logits of 20 by about as much.
_MODELS = {'stories260K': ('stories260K', 0, 'Lily and Tom'),
           'stories260K-w4-g64': ('stories260K-pad192', 64, 'Lily'),
           'babyllama105': ('babyllama105-pad384', 0, ''),
           'babyllama105-w4-g32': ('babyllama105-pad384', 32, 'There was a'),
           'babyllama105-w4-g128': ('babyllama105-pad384', 128, 'There was a')}

# Of the largest logit; half of it is what fp16 loses on the CPU.
_TOLERANCE = 5e-3

_GPU = {'device': 'cuda', 'dtype': 'float16'}
_CPU = {'device': 'cpu', 'dtype': 'float32'}


@pytest.fixture(autouse=True, scope='module')
def on_gpu(request) -> None:
    """Leave these tests out where the kernels run on the emulator."""
    if request.config.getoption('--device') != 'cuda':
        pytest.skip('needs a GPU and --device cuda')


@dataclass(frozen=True)
class Subject:
    """The folder of a trained model, as it is or in 4 bits, and a text that it continues."""

    path: Path
    text: str

    def load(self, where: dict, **options) -> Engine:
        """Return an engine of the model."""
        return Engine.load(self.path, **where, **options)


@pytest.fixture(scope='module', params=_MODELS)
def subject(request, tmp_path_factory) -> Subject:
    """Return each model in turn."""
    name, group_size, text = _MODELS[request.param]
    path = data_path(f'models/{name}')
    if group_size:
        path = quantize_folder(path, tmp_path_factory.mktemp(request.param), group_size)
    return Subject(path, text)


def _answer(engine: Engine, text: str, tokens: int = 100, **fields) -> Result:
    request = Request(**{'sampling': SamplingParams(), **fields}, raw=True, text=text,
                      max_new_tokens=tokens)
    return list(engine.generate(request))[-1].result


def test_a_hundred_greedy_tokens_are_those_of_the_cpu(subject):
    found, expected = (_answer(subject.load(where), subject.text) for where in (_GPU, _CPU))
    assert found.text == expected.text
    assert found.token_ids == expected.token_ids


@pytest.mark.parametrize('piece', [1, 5, 64])
def test_the_logits_are_those_of_the_cpu(subject, piece):
    engine = subject.load(_CPU)
    ids = [*engine.tokenizer.encode(''), *_answer(engine, '', tokens=63).token_ids]
    oracle = run_model(load_folder(subject.path), ids)
    on_gpu = load_folder(subject.path, torch.float16, device=torch.device('cuda'))
    found = run_model(on_gpu, ids, piece).cpu()
    assert found.shape == oracle.shape and len(found) == 64
    assert (found - oracle).abs().max() <= _TOLERANCE * oracle.abs().max()


def test_a_seed_draws_the_same_answer_again(subject):
    engine = subject.load(_GPU)
    first, again, other = (
        _answer(engine, 'Once', sampling=SamplingParams(temperature=1.0, top_p=0.95, seed=seed))
        for seed in (7, 7, 8))
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


def test_two_conversations_in_turn_keep_their_slots(subject):
    def talk(where: dict) -> list[Result]:
        engine = subject.load(where, num_slots=2)
        texts = {'one': subject.text, 'other': 'Once upon a time'}
        results = []
        for name in ('one', 'other', 'one', 'other'):
            results.append(_answer(engine, texts[name], 12, conversation_id=name))
            texts[name] += results[-1].text
        return results

    found, expected = talk(_GPU), talk(_CPU)
    assert [r.text for r in found] == [r.text for r in expected]
    assert [r.cached_tokens for r in found] == [r.cached_tokens for r in expected]
    for first, second in zip(found, found[2:]):
        assert second.cached_tokens > first.prompt_tokens


def test_an_int8_kv_cache_says_the_same_for_a_while(subject):
    found = _answer(subject.load(_GPU, kv_cache_dtype='int8'), subject.text, tokens=20)
    expected = _answer(subject.load(_CPU), subject.text, tokens=20)
    assert found.token_ids == expected.token_ids
