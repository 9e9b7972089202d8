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
"""Weights of a source that fp16, in which the output is written, could not hold."""

import pytest
from tiny_models import llama_config, llama_tensors, write_model
import torch

from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels.rtn import WeightSpec
from tinychat_ros.quantization.job import Job, SmoothQuant, WeightOnly
from tinychat_ros.quantization.method import METHODS
from tinychat_ros.quantization.quantize import quantize_checkpoint


@pytest.mark.parametrize('scheme', [*(WeightOnly(METHODS[name], WeightSpec(4, 32))
                                      for name in ('rtn', 'awq')), SmoothQuant()],
                         ids=['rtn', 'awq', 'smoothquant'])
@pytest.mark.parametrize('name', [
    'model.layers.1.mlp.up_proj.weight', 'model.layers.0.input_layernorm.weight',
    'lm_head.weight'])
def test_a_value_beyond_fp16_is_refused_by_the_name_of_its_tensor(scheme, name, tmp_path):
    config = llama_config()
    tensors = llama_tensors(config, dtype=torch.bfloat16)
    tensors[name].view(-1)[5] = 1e30
    source = write_model(tmp_path / 'source', config, tensors)
    with pytest.raises(CheckpointError, match=f'{name}: expected values that fp16 holds'):
        quantize_checkpoint(Job(source, tmp_path / 'out', scheme, [torch.arange(40)]))
