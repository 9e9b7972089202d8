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
"""The rungs of the ladder that take kernels, on the emulator or on a GPU."""

from backend import Backend
import pytest
from tiny_models import llama_config, one_thread  # noqa: F401
import torch

from tinychat_ros.bench import ladder
from tinychat_ros.bench.eager import Decoder, PlainWeights
from tinychat_ros.bench.shapes import RandomWeights
from tinychat_ros.kernels import extension
from tinychat_ros.models.config import ModelConfig

_TOKENS = [1, 7, 3, 90]
_CONTEXT = 37


def _config(**changes) -> ModelConfig:
    return ModelConfig.from_dict(llama_config(hidden_size=128, head_dim=32, **changes))


@pytest.fixture
def device(one_order: Backend, monkeypatch) -> torch.device:
    """Return the device whose tensors the kernels take."""
    if one_order.device.type == 'cpu':
        monkeypatch.setattr(extension, 'cuda', lambda device: one_order.module)
    return one_order.device


@pytest.mark.parametrize('kv_heads', [4, 2])
@pytest.mark.parametrize('name', [name for name in ladder.PLAIN
                                  if name not in ladder.WITHOUT_KERNELS])
def test_a_rung_gives_the_logits_of_the_first(device, name, kv_heads):
    config = _config(num_key_value_heads=kv_heads)
    weights = PlainWeights(config, RandomWeights(device, torch.float16))
    past = ladder.random_past(config, _CONTEXT, device, torch.float16)

    def logits(techniques: tuple[str, ...]) -> torch.Tensor:
        decoder = Decoder(weights, past, techniques, 48)
        return torch.cat([decoder.logits(torch.tensor([token], device=device))
                          for token in _TOKENS])

    techniques = ladder.PLAIN[:ladder.PLAIN.index(name) + 1]
    torch.testing.assert_close(logits(techniques), logits(()), rtol=0, atol=0.02)


def test_a_gpu_runs_every_rung(device):
    if device.type != 'cuda':
        pytest.skip('CUDA graphs need a GPU')
    rungs = ladder.ladder(_config(), device, torch.float16, context=_CONTEXT, tokens=4)
    assert [rung.left_out for rung in rungs] == [''] * 8
    assert all(rung.milliseconds > 0 for rung in rungs)
