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
"""Imports point one way, and each outside dependency has one home."""

import ast
from pathlib import Path
import sys
from typing import Iterator

import pytest

PACKAGE = 'tinychat_ros'

# A part imports itself and what stands in a line above its own.
LAYERS = (
    {'errors'},
    {'kernels'},
    {'models'},
    {'checkpoint'},
    {'engine', 'quantization'},
    {'__init__', 'bench', 'doctor'},
    {'commands'},
    {'benchmarks', 'cli', 'demo_model', 'nodes'},
    {'examples'},
)

ROS_HOMES = ('nodes/', 'examples/')
HOMES = {
    'torch': ('',),
    'action_msgs': ROS_HOMES,
    'builtin_interfaces': ROS_HOMES,
    'diagnostic_msgs': ROS_HOMES,
    'lifecycle_msgs': ROS_HOMES,
    'rcl_interfaces': ROS_HOMES,
    'rclpy': ROS_HOMES,
    'sensor_msgs': ROS_HOMES,
    'std_msgs': ROS_HOMES,
    'tinychat_msgs': ROS_HOMES,
    'PIL': ('engine/image.py', 'engine/image_processor.py'),
    'jinja2': ('engine/chat_template.py', 'quantization/report.py'),
    'matplotlib': ('quantization/report.py', 'bench/table.py'),
    'safetensors': ('checkpoint/',),
    'sentencepiece': ('engine/tokenizer.py',),
    'tinychat_kernels': ('kernels/extension.py',),
    'tokenizers': ('engine/tokenizer.py', 'demo_model/'),
    'tqdm': ('quantization/',),
    'transformers': ('engine/tokenizer.py', 'demo_model/'),
}


def imported_modules(source: str, path: str) -> Iterator[str]:
    """
    Yield the dotted name of everything that a module imports, anywhere in it.

    :param source: text of the module.
    :param path: where it is below the package, such as 'engine/engine.py'.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                folders = [PACKAGE, *Path(path).parts[:-1]]
                base = folders[:len(folders) - node.level + 1] + base
            yield from ('.'.join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            if name in ('import_module', '__import__'):
                yield str(node.args[0].value)


def layer_of(part: str) -> int:
    """Return the line of LAYERS that a part stands in, or -1."""
    return next((index for index, layer in enumerate(LAYERS) if part in layer), -1)


def violation(path: str, module: str) -> str:
    """Say what is wrong with one import, or return ''."""
    top, *rest = module.split('.')
    if top == PACKAGE:
        importer = Path(path).parts[0].replace('.py', '')
        # `from tinychat_ros import Engine` asks for a name of the package itself.
        part = rest[0] if rest and layer_of(rest[0]) >= 0 else '__init__'
        if layer_of(importer) < 0:
            return f'{path}: {importer} stands in no layer'
        if part != importer and layer_of(part) >= layer_of(importer):
            return f'{path}: {importer} must not import {part}'
    elif top not in sys.stdlib_module_names and top not in HOMES:
        return f'{path}: {top} has no home'
    elif not path.startswith(HOMES.get(top, '')):
        return f'{path}: {top} is imported outside {" and ".join(HOMES[top])}'
    return ''


def violations(package: Path) -> list:
    """Return what is wrong with the imports of every module below a folder."""
    found = []
    for module in sorted(package.rglob('*.py')):
        path = module.relative_to(package).as_posix()
        for name in imported_modules(module.read_text(encoding='utf-8'), path):
            found.append(violation(path, name))
    return [line for line in found if line]


def test_every_import_follows_the_arrow_and_stays_at_home(repository):
    """The package as it is."""
    assert violations(repository / PACKAGE) == []


@pytest.mark.parametrize('path, line, expected', [
    ('kernels/ops.py', 'from tinychat_ros.models.config import ModelConfig',
     'kernels must not import models'),
    ('models/llama.py', 'from ..engine import engine', 'models must not import engine'),
    ('engine/engine.py', 'from tinychat_ros import quantization',
     'engine must not import quantization'),
    ('checkpoint/loader.py', 'from tinychat_ros import Engine',
     'checkpoint must not import __init__'),
    ('nodes/chat_node.py', 'import tinychat_ros.cli', 'nodes must not import cli'),
    ('tools/helper.py', 'import tinychat_ros.cli', 'tools stands in no layer'),
    ('errors.py', 'import tinychat_ros.kernels.ops', 'errors must not import kernels'),
    ('engine/engine.py', 'def run():\n    import rclpy', 'rclpy is imported outside'),
    ('cli.py', 'from safetensors import safe_open', 'safetensors is imported outside'),
    ('engine/engine.py', 'import tokenizers', 'tokenizers is imported outside'),
    ('kernels/ops.py', "import importlib\nimportlib.import_module('tinychat_kernels')",
     'tinychat_kernels is imported outside'),
    ('engine/engine.py', 'import pandas.io', 'pandas has no home'),
])
def test_an_import_against_the_rules_is_named(tmp_path, path, line, expected):
    """One planted violation is found, and is the only one."""
    module = tmp_path / path
    module.parent.mkdir(exist_ok=True)
    module.write_text(f'import os\n\nimport torch\n\n{line}\n')
    [found] = violations(tmp_path)
    assert found.startswith(f'{path}: {expected}')


@pytest.mark.parametrize('path, line', [
    ('nodes/chat_node.py', 'import rclpy\nfrom tinychat_ros.engine.engine import Engine'),
    ('models/llama.py', 'from . import layers\nfrom ..kernels.ops import linear'),
    ('kernels/extension.py', 'import tinychat_kernels'),
    ('__init__.py', 'from tinychat_ros.engine.engine import Engine'),
])
def test_an_import_along_the_arrow_passes(tmp_path, path, line):
    """The rules do not refuse what they should let through."""
    module = tmp_path / path
    module.parent.mkdir(exist_ok=True)
    module.write_text(f'{line}\n')
    assert violations(tmp_path) == []
