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
"""A small run of the soak, and of the overhead, as they are run at length."""

import importlib.util
import json
import subprocess
import sys

import pytest

if importlib.util.find_spec('rclpy') is None:
    pytest.skip('without ROS there is no node', allow_module_level=True)


def _document(repository, *arguments):
    done = subprocess.run([sys.executable, '-m', *arguments], cwd=repository, text=True,
                          capture_output=True, timeout=240)
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_each_of_300_requests_ends_once_and_stopping_takes_effect(repository):
    document = _document(repository, 'benchmarks.node_soak', '--requests', '300', '--trials', '5')
    soak = document['soak']
    assert (soak['requests'], soak['wrong']) == (300, [])
    assert {name.split()[0] for name in soak['outcomes']} == {
        'topic', 'goal', 'cancel', 'interrupt', 'deadline', 'bad'}
    assert soak['memory_late'] > soak['memory_early'] > 0
    assert all(document['latency'][kind]['max'] > 0 for kind in ('cancel', 'interrupt', 'preempt'))


def test_the_overhead_is_a_ratio_of_the_same_tokens(repository):
    document = _document(repository, 'benchmarks.node_overhead', '--starts', '2', '--rounds', '2')
    assert (document['tokens'], document['rounds'], document['subscribers']) == (900, 2, 3)
    assert len(document['ratio_of_each_start']) == 2
    assert 0 < document['ratio']['median'] < 5
