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
"""Models for the nodes under test, and one node per module where tests can share it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
import shutil
from typing import Callable, Iterator

import pytest

# Without ROS there is no node to test.
if importlib.util.find_spec('rclpy') is None:
    collect_ignore_glob = ['test_*.py']
else:
    from node_process import Client, NodeProcess, ROOT

_TEMPLATE = '{% for message in messages %}{{ message.content }}{% endfor %}'


@pytest.fixture(scope='session')
def story_model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Return a model that tells stories as long as it may.

    It is stories260K with a chat template, a longer context and no token that ends an answer, so
    that a test may count on an answer to last.
    """
    source = shared_data / 'models' / 'stories260K'
    path = tmp_path_factory.mktemp('models') / 'stories'
    path.mkdir()
    for name in ('model.safetensors', 'tokenizer.json'):
        shutil.copyfile(source / name, path / name)
    config = json.loads((source / 'config.json').read_text())
    config |= {'max_position_embeddings': 4096, 'eos_token_id': None}
    (path / 'config.json').write_text(json.dumps(config))
    (path / 'tokenizer_config.json').write_text(json.dumps({'bos_token': '<s>'}))
    (path / 'chat_template.jinja').write_text(_TEMPLATE)
    return path


@pytest.fixture(scope='session')
def demo_model() -> Path:
    """Return the embedded demo model; skip only where its weights were not made yet."""
    path = ROOT / 'tinychat_ros' / 'demo_model'
    if not (path / 'model.safetensors').exists():
        pytest.skip('the weights of the demo model are not there')
    return path


@pytest.fixture(scope='module')
def start_node(ros_domain_id: int, tmp_path_factory: pytest.TempPathFactory,
               ) -> Iterator[Callable[..., NodeProcess]]:
    """Return a function that starts a node; all end with the module."""
    nodes = []

    def start(**parameters) -> NodeProcess:
        # In fp32 a story model says thousands of tokens a second, which none can interrupt.
        if 'model' in parameters:
            parameters.setdefault('dtype', 'bfloat16')
        nodes.append(NodeProcess(tmp_path_factory.mktemp('node'), **parameters))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


@pytest.fixture(scope='module')
def connect() -> Iterator[Callable[..., Client]]:
    """Return a function that makes a client; all leave with the module."""
    clients = []

    def make(process: NodeProcess, **options) -> Client:
        clients.append(Client(process, **options))
        return clients[-1].connect()

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope='module')
def story_node(start_node: Callable[..., NodeProcess], story_model: Path) -> NodeProcess:
    """Return a node that tells stories."""
    return start_node(model=story_model, max_seq_len=2048)


@pytest.fixture(scope='module')
def client(connect: Callable[..., Client], story_node: NodeProcess) -> Client:
    """Return a client of the module's story node."""
    return connect(story_node)
