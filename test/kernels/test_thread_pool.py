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
"""The pool of the CPU kernels: every index once, without a race."""

from pathlib import Path
import shutil
import subprocess

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / 'csrc'


@pytest.mark.parametrize('sanitizer', ['thread', 'address,undefined'])
def test_every_index_is_visited_once_and_no_thread_races_another(tmp_path, sanitizer):
    if shutil.which('g++') is None:
        pytest.skip('there is no g++')
    program = tmp_path / 'check'
    built = subprocess.run(
        ['g++', '-std=c++17', '-O1', '-g', '-pthread', f'-fsanitize={sanitizer}',
         '-fno-sanitize-recover=all', f'-I{CSRC}', str(CSRC / 'cpu/thread_pool.cpp'),
         str(HERE / 'thread_pool_check.cpp'), '-o', str(program)], capture_output=True, text=True)
    if 'cannot find' in built.stderr:
        pytest.skip('the sanitizer is not installed')
    assert built.returncode == 0, built.stderr
    # Without random addresses, which some kernels give more of than the sanitizer can map.
    command = ['setarch', '-R', str(program)] if shutil.which('setarch') else [str(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, 'clean\n'), result.stdout + result.stderr
