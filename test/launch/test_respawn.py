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
"""With launch_testing: a node has its parameters composed, and comes back after it was killed."""

import os
import signal
import unittest

import pytest
from tiny_models import write_chat_model

pytest.importorskip('launch_testing', reason='launch_testing is not installed')
pytest.importorskip('launch_ros', reason='launch_ros is not installed')
pytest.importorskip('rclpy', reason='rclpy is not installed')


@pytest.mark.launch_test
def generate_test_description():
    """Launch a node that the file gives another model than the argument."""
    from launch_description import describe, new_folder
    folder = new_folder()
    model = write_chat_model(folder / 'model_of_the_argument')
    params_file = folder / 'parameters.yaml'
    params_file.write_text('/**:\n  ros__parameters:\n    model: model_of_the_file\n'
                           '    device: cpu\n    max_new_tokens: 7\n')
    return describe('chat.launch.py', namespace='served', model=str(model), num_threads='1',
                    params_file=str(params_file), respawn='true', respawn_delay='0.1')


class LaunchedNode(unittest.TestCase):
    """One node, respawned."""

    @classmethod
    def setUpClass(cls):
        """Wait for the node."""
        from launch_description import connect
        cls.client = connect('/served')

    @classmethod
    def tearDownClass(cls):
        """Leave."""
        cls.client.close()

    def test_arguments_go_before_the_parameter_file(self):
        """What only one of them names comes from that one."""
        from rcl_interfaces.srv import GetParameters
        names = ['model', 'device', 'num_threads', 'max_new_tokens']
        values = self.client.call(GetParameters, 'get_parameters', names=names).values
        assert values[0].string_value.endswith('model_of_the_argument')
        assert values[1].string_value == 'cpu'
        assert [value.integer_value for value in values[2:]] == [1, 7]
        assert self.client.status().model == 'model_of_the_argument'

    def test_it_answers_again_after_it_was_killed(self, pids):
        """The client that was there before needs no more than to wait."""
        from node_process import mapped_segments, remove_left_behind
        before = self.client.ask('Hello', max_new_tokens=5)
        before.check()
        mapped = mapped_segments(pids[0])
        os.kill(pids[0], signal.SIGKILL)
        self.client.wait(lambda: len(pids) == 2)
        remove_left_behind(mapped)
        after = self.client.connect().ask('Hello', max_new_tokens=5)
        after.check()
        assert after.text == before.text
