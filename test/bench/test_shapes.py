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
"""A shape's weights take what they are said to take."""

import pytest
import torch

from tinychat_ros.bench.kernels import weight_bytes
from tinychat_ros.bench.shapes import shape_bytes, shape_config, SHAPES
from tinychat_ros.bench.subject import of_shape
from tinychat_ros.engine.config import EngineConfig


def test_the_size_is_that_of_the_weights():
    subject = of_shape('tiny', 32, EngineConfig(device='cpu', num_threads=1), 16)
    model = subject.model
    linears = [*(linear for block in model.blocks for linear in block.linears()), model.lm_head]
    size = sum(map(weight_bytes, linears)) + model.embedding.nbytes
    # The CPU's tiles have a little more beside the codes in groups of 32.
    plain = model.embedding.dtype
    assert shape_bytes(model.config, plain, 32) == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize('name, gigabytes', [
    ('tinyllama-1.1b', 0.77), ('llama-2-7b', 3.92), ('llama-3-8b', 5.75),
    ('qwen2.5-1.5b', 1.15), ('gemma-2-2b', 2.23), ('mpt-7b', 3.77)])
def test_known_shapes_have_their_known_size(name, gigabytes):
    size = shape_bytes(shape_config(name), torch.float16, 128)
    assert name in SHAPES and size / 1e9 == pytest.approx(gigabytes, rel=0.02)
