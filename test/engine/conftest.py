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
"""An engine whose model is a fake, so that a test can say what it answers."""

from typing import Callable, Sequence

from fake_model import echo, FakeRunner
import pytest
from tiny_models import one_thread, write_chat_model  # noqa: F401

from tinychat_ros.engine.engine import Engine


@pytest.fixture(scope='session')
def chat_model(tmp_path_factory):
    """Return the folder of a small random model with bytes as tokens."""
    return write_chat_model(tmp_path_factory.mktemp('chat_model'), hidden_size=16, head_dim=4,
                            intermediate_size=16, num_hidden_layers=1)


@pytest.fixture
def make_engine(chat_model):
    """Return a function that loads an engine and puts a fake in the place of its model."""
    def make(next_token: Callable[[Sequence[int]], int] = echo, **options) -> Engine:
        engine = Engine.load(chat_model, **{'device': 'cpu', 'max_seq_len': 256, **options})
        engine._runner = FakeRunner(next_token, engine.info.vocab_size)
        return engine
    return make
