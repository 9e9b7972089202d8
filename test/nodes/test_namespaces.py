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
"""Several nodes on one machine, each in its namespace and with parameters of its own."""

from node_process import ROOT
import pytest
from rcl_interfaces.srv import GetParameters

from tinychat_msgs.msg import Interrupt, Response


@pytest.fixture(scope='module')
def two(connect, start_node, story_model, demo_model):
    """Return clients of a node that tells stories and of one with the demo model."""
    return connect(start_node(model=story_model, max_seq_len=2048)), connect(start_node())


def test_two_robots_have_two_models_and_do_not_hear_each_other(two):
    story, demo = two
    heard = len(demo.received['response'])
    running = story.send('Once upon a time', conversation_id='same', max_new_tokens=2000)
    story.wait_for_chunks(running)
    # The other answers meanwhile, under the same names, and its interrupt is its own.
    answer = demo.ask('Bring me the cup.', conversation_id='same')
    demo.interrupt.publish(Interrupt())
    demo.wait(lambda: 'interrupt: ' in demo.log)
    story.wait(lambda: story.answer(running).whole)
    assert story.answer(running).response.finish_reason == Response.LENGTH
    assert demo.received['response'][heard:] == [answer.response]
    assert 'cup' in answer.text
    assert (story.status().model, demo.status().model) == ('stories', 'demo_model')


def test_a_robot_goes_on_when_another_is_killed(two, start_node, connect, story_model):
    third = start_node(model=story_model)
    connect(third)
    third.kill()
    for client in two:
        client.ask('Follow me.', max_new_tokens=5).check()


def test_a_parameter_file_counts_in_every_namespace_where_no_argument_does(
        start_node, connect, story_model, tmp_path):
    params_file = tmp_path / 'parameters.yaml'
    text = (ROOT / 'config' / 'tinychat.yaml').read_text()
    params_file.write_text(text.replace('max_new_tokens: 256', 'max_new_tokens: 7'))
    node = start_node(model=story_model)
    node.end()
    node.start('--params-file', str(params_file))
    client = connect(node)
    names = ['model', 'max_new_tokens']
    values = client.call(GetParameters, 'get_parameters', names=names).values
    assert values[0].string_value == str(story_model)
    assert values[1].integer_value == 7
    assert client.ask('Once').response.completion_tokens == 7
