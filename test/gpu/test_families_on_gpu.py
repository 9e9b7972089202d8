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
"""Every family with 4-bit weights on a GPU, against transformers in fp32 on the CPU."""

from family_models import (
    FAMILIES, load_family, logits_of, MAX_SEQ_LEN, quantize_family, token_ids,
    transformers_model, write_family)
import pytest
from tiny_models import one_thread, run_model  # noqa: F401
import torch

from tinychat_ros.engine.graph_runner import GraphRunner, make_runner
from tinychat_ros.models.kv_cache import KVCache

_GPU = torch.device('cuda')


@pytest.fixture(autouse=True, scope='module')
def on_gpu(request) -> None:
    """Leave these tests out where the kernels run on the emulator."""
    if request.config.getoption('--device') != 'cuda':
        pytest.skip('needs a GPU and --device cuda')


@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 1e-2), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize('name', FAMILIES)
def test_logits_are_those_of_the_dequantized_weights(name, dtype, tolerance, tmp_path):
    folders = quantize_family(write_family(tmp_path, name), tmp_path)
    theirs = transformers_model(folders['plain'])
    ids = token_ids(theirs.config.vocab_size)
    expected = logits_of(theirs, ids)
    model = load_family(folders['awq'], dtype, device=_GPU)
    for piece in (0, 13, 7, 1):
        found = run_model(model, ids, piece).cpu()
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize('name', FAMILIES)
def test_its_step_is_recorded(name, tmp_path):
    folders = quantize_family(write_family(tmp_path, name), tmp_path)
    model = load_family(folders['awq'], torch.float16, device=_GPU)
    cache = KVCache(model.config, 1, MAX_SEQ_LEN, torch.float16, _GPU)
    assert isinstance(make_runner(model, cache, _GPU), GraphRunner)
