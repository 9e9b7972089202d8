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
"""The node's parameters: described, checked, and read when they say they are."""

import subprocess
import sys

from node_process import ROOT
import pytest
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters
from rclpy.parameter import parameter_value_to_python
from std_msgs.msg import String
import yaml

from tinychat_ros.nodes.parameters import SPECS

AT_LOAD = [spec.name for spec in SPECS if spec.at_load]


def get_parameter(client, name):
    """Return the value message of a parameter."""
    return client.call(GetParameters, 'get_parameters', names=[name]).values[0]


@pytest.fixture
def changed(client):
    """Return a function that sets a parameter and expects success; undone after the test."""
    before = {}

    def change(name, value):
        before.setdefault(name, get_parameter(client, name))
        assert client.set_parameter(name, value) == ''

    yield change
    for name, value in before.items():
        assert client.set_parameter(name, parameter_value_to_python(value)) == ''


def test_every_parameter_is_described_with_its_unit_and_range(client):
    names = client.call(ListParameters, 'list_parameters').result.names
    ours = {spec.name: spec for spec in SPECS}
    assert set(ours) == set(names) - {'use_sim_time', 'start_type_description_service'}
    descriptors = client.call(DescribeParameters, 'describe_parameters', names=list(ours))
    for descriptor in descriptors.descriptors:
        spec = ours[descriptor.name]
        assert len(descriptor.description) > 10
        assert descriptor.read_only == spec.read_only
        ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
        is_number = descriptor.type in (
            ParameterType.PARAMETER_INTEGER, ParameterType.PARAMETER_DOUBLE)
        assert len(ranges) == is_number
        for span in ranges:
            assert (span.from_value, span.to_value) == spec.span
            assert span.from_value <= spec.default <= span.to_value


def test_the_configuration_file_lists_every_parameter_with_its_default():
    text = (ROOT / 'config' / 'tinychat.yaml').read_text()

    def flat(tree, prefix=''):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f'{prefix}{name}.')
            else:
                yield f'{prefix}{name}', value

    listed = dict(flat(yaml.safe_load(text)['/**']['ros__parameters']))
    assert listed == {spec.name: spec.default for spec in SPECS}
    assert {n: type(v) for n, v in listed.items()} == {s.name: type(s.default) for s in SPECS}


@pytest.mark.parametrize('name', AT_LOAD)
def test_what_is_read_at_load_cannot_change_while_a_model_is_loaded(client, name):
    value = parameter_value_to_python(get_parameter(client, name))
    reason = client.set_parameter(name, value)
    assert reason.startswith(f'{name}: expected the node to be unconfigured')


@pytest.mark.parametrize('name, value', [
    ('max_new_tokens', 0), ('max_new_tokens', -3), ('sampling.temperature', 500.0),
    ('sampling.temperature', -0.5), ('sampling.temperature', float('nan')),
    ('sampling.top_p', 2.0), ('sampling.top_p', 0.0), ('sampling.top_k', -5),
    ('sampling.min_p', 1.1), ('sampling.repetition_penalty', 0.0), ('sampling.seed', -2),
    ('stream.flush_ms', -1), ('autostart', False), ('diagnostics.period_s', 2.0)])
def test_a_value_out_of_its_range_is_refused_with_the_reason(client, name, value):
    before = get_parameter(client, name)
    assert len(client.set_parameter(name, value)) > 10
    assert get_parameter(client, name) == before


def test_a_value_of_another_type_is_refused(client):
    assert 'type' in client.set_parameter('max_new_tokens', 'many').lower()
    assert get_parameter(client, 'max_new_tokens') == ParameterValue(
        type=ParameterType.PARAMETER_INTEGER, integer_value=256)


def test_the_number_of_new_tokens_changes_with_the_next_request(client, changed):
    changed('max_new_tokens', 7)
    assert client.ask('Once').response.completion_tokens == 7
    assert client.ask('Once', max_new_tokens=9).response.completion_tokens == 9


def test_the_sampling_changes_with_the_next_request(client, changed):
    greedy = client.ask('Once', sampling={}, max_new_tokens=40).text
    assert client.ask('Once', sampling={'temperature': 0.0}, max_new_tokens=40).text == greedy
    changed('sampling.temperature', 1.0)
    changed('sampling.seed', 3)
    drawn = client.ask('Once', sampling={}, max_new_tokens=40).text
    assert client.ask('Once', sampling={}, max_new_tokens=40).text == drawn != greedy
    assert client.ask('Once', sampling={'temperature': 0.0}, max_new_tokens=40).text == greedy
    assert client.ask('Once', sampling={'seed': 4}, max_new_tokens=40).text != drawn


def test_the_portions_of_the_stream_change_with_the_next_request(client, changed):
    changed('stream.flush_ms', 0)
    assert len(client.ask('Once', max_new_tokens=100).chunks) > 80
    changed('stream.flush_ms', 60000)
    assert len(client.ask('Once', max_new_tokens=100).chunks) == 2


def test_the_conversation_of_plain_prompts_changes_with_the_next_one(client, changed):
    changed('default_conversation', 'kitchen')
    seen = len(client.received['response'])
    client.prompt.publish(String(data='Once'))
    client.wait(lambda: len(client.received['response']) > seen)
    assert client.received['response'][-1].conversation_id == 'kitchen'


@pytest.mark.parametrize('override, reason', [
    ('sampling.top_p:=0.0', 'top_p: expected a value in (0.0, 1.0], got 0.0'),
    ('num_slots:=0', 'num_slots'), ('sampling.temperature:=500.0', 'sampling.temperature'),
    ('queue_capacity:=many', 'queue_capacity')])
def test_a_bad_value_at_the_start_ends_it_in_one_line(ros_domain_id, override, reason):
    ended = subprocess.run(
        [sys.executable, '-m', 'tinychat_ros.nodes.chat_node', '--ros-args', '-p', override],
        cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert reason in ended.stderr
    assert 'Traceback' not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
