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
"""A recorded step, whose kernels overlap, gives the tokens of the same kernels one by one."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from tinychat_ros.bench.shapes import RandomWeights
from tinychat_ros.engine.graph_runner import GraphRunner
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.kernels import cuda, extension
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.kv_cache import KVCache
from tinychat_ros.models.causal_lm import CausalLM

# Kernels as long as those of a 7B model, and few of them.
SHAPE = {'model_type': 'llama', 'vocab_size': 32000, 'hidden_size': 4096,
         'intermediate_size': 11008, 'num_hidden_layers': 4, 'num_attention_heads': 32,
         'num_key_value_heads': 8}
MAX_SEQ_LEN = 301
TOKENS = 200
SAMPLING = SamplingParams(temperature=1.0, top_k=500, top_p=0.95, seed=3)


@pytest.fixture(autouse=True, scope='module')
def on_gpu(request) -> None:
    """Leave these tests out where the kernels run on the emulator."""
    if request.config.getoption('--device') != 'cuda':
        pytest.skip('needs a GPU and --device cuda')


class OneByOne:
    """The compiled module, with a wait behind every call."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, type):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = found(*args, **kwargs)
            torch.cuda.synchronize()
            return result

        return call


def generated(model: CausalLM, kv_dtype: torch.dtype) -> list[int]:
    device = torch.device('cuda')
    cache = KVCache(model.config, 2, MAX_SEQ_LEN, kv_dtype, device)
    runner = GraphRunner(model, cache, device)
    prompt = list(range(70, 150))
    last = runner.prefill(prompt, 1, 0)
    answer = runner.tokens(last, 1, len(prompt), SAMPLING, prompt)
    return [next(answer) for _ in range(TOKENS)]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('int8', [False, True], ids=['', 'int8'])
def test_a_recorded_step_gives_the_tokens_of_kernels_that_wait_for_each_other(
        monkeypatch, dtype, int8):
    device = torch.device('cuda')
    model = CausalLM(ModelConfig.from_dict(SHAPE), RandomWeights(device, dtype), MAX_SEQ_LEN,
                     device)
    kv_dtype = torch.int8 if int8 else dtype
    recorded = generated(model, kv_dtype)
    module = OneByOne(extension.load())
    monkeypatch.setattr(extension, 'cuda', lambda device: module)
    monkeypatch.setattr(cuda, 'record', lambda step: step)
    assert generated(model, kv_dtype) == recorded
    assert len(set(recorded)) > TOKENS / 4
