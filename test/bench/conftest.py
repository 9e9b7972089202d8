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
"""A shape that is small, and limits that are quick to measure."""

import pytest
from tiny_models import one_thread  # noqa: F401

from tinychat_ros.bench import bandwidth, shapes

TINY = {'model_type': 'llama', 'vocab_size': 96, 'hidden_size': 64, 'intermediate_size': 128,
        'num_hidden_layers': 3, 'num_attention_heads': 4, 'num_key_value_heads': 2}


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    """Add the shape `tiny`."""
    monkeypatch.setitem(shapes.SHAPES, 'tiny', TINY)
    monkeypatch.setitem(bandwidth._BUFFER_BYTES, 'cpu', 2**20)
    monkeypatch.setitem(bandwidth._MATRIX_SIZES, 'cpu', (32, 64))
