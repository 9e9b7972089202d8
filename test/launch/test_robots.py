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
"""With launch_testing: two robots have two models, and do not hear each other."""

import unittest

import pytest
from tiny_models import write_chat_model

pytest.importorskip('launch_testing', reason='launch_testing is not installed')
pytest.importorskip('launch_ros', reason='launch_ros is not installed')
pytest.importorskip('rclpy', reason='rclpy is not installed')


@pytest.mark.launch_test
def generate_test_description():
    """Launch one robot with the demo model, and one with another model."""
    from launch_description import describe, new_folder
    model = write_chat_model(new_folder() / 'model_of_bob')
    return describe('robots.launch.py', num_threads='1',
                    robots=f'[{{namespace: bob, model: {model}}}, alice]')


class Robots(unittest.TestCase):
    """Two robots."""

    @classmethod
    def setUpClass(cls):
        """Wait for the nodes."""
        from launch_description import connect
        cls.alice, cls.bob = connect('/alice'), connect('/bob')

    @classmethod
    def tearDownClass(cls):
        """Leave."""
        cls.alice.close()
        cls.bob.close()

    def test_each_has_the_model_that_it_was_given(self):
        """The argument of one does not reach the other."""
        assert self.alice.status().model == 'demo_model'
        assert self.bob.status().model == 'model_of_bob'

    def test_what_one_is_asked_the_other_does_not_hear(self):
        """Each client gets the answer of its robot alone."""
        for asked, other in ((self.alice, self.bob), (self.bob, self.alice)):
            heard = len(other.received['response'])
            answer = asked.ask('Bring me the cup.', max_new_tokens=20)
            answer.check()
            # What the other robot says next is its own.
            own = other.ask('Follow me.', max_new_tokens=20)
            assert other.received['response'][heard:] == [own.response]
