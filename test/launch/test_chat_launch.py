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
"""The launch file explains its arguments, and starts the node with those that were given."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from types import ModuleType
from typing import Iterator

from installation import install, LAUNCH_FILES
import pytest
from tiny_models import write_chat_model

launch = pytest.importorskip('launch', reason='ROS launch is not installed')
pytest.importorskip('launch_ros', reason='ROS launch is not installed')

LAUNCH_FILE = LAUNCH_FILES / 'chat.launch.py'
ROBOTS_FILE = LAUNCH_FILES / 'robots.launch.py'

# What `ros2 launch` does.
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
arguments = [argument.split(':=', 1) for argument in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(LaunchDescription([
    IncludeLaunchDescription(sys.argv[1], launch_arguments=arguments)]))
sys.exit(service.run())
"""


@pytest.fixture(scope='module')
def launch_file() -> ModuleType:
    """Return the launch file as a module."""
    from launch.launch_description_sources import load_python_launch_file_as_module
    return load_python_launch_file_as_module(str(LAUNCH_FILE))


@pytest.fixture
def start(tmp_path: Path, ros_domain_id: int) -> Iterator:
    """Return a function that launches with the given arguments; all end with the test."""
    processes = []
    environment = {**os.environ, 'AMENT_PREFIX_PATH': install(tmp_path)}

    def launch_with(*arguments: str) -> subprocess.Popen:
        processes.append(subprocess.Popen(
            [sys.executable, '-c', LAUNCH, str(LAUNCH_FILE), *arguments], env=environment))
        return processes[-1]

    yield launch_with
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def wait_for_model(topic: str, seconds: float = 60.0) -> str:
    """Return the model and device that the node of a status topic says it has loaded."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from tinychat_msgs.msg import Status
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('launch_test', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    received = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(Status, topic, received.append, latched)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (received and received[-1].model):
        executor.spin_once(timeout_sec=0.1)
    node.destroy_node()
    rclpy.shutdown(context=context)
    assert received, f'nothing came on {topic}'
    return f'{received[-1].model} on {received[-1].device}'


def test_every_argument_is_described(launch_file):
    """What --show-args prints."""
    arguments = {argument.name: argument for argument in
                 launch_file.generate_launch_description().get_launch_arguments()}
    assert set(arguments) == {
        'model', 'device', 'activations', 'num_threads', 'namespace', 'node_name', 'image',
        'params_file', 'respawn', 'respawn_delay', 'log_level'}
    for argument in arguments.values():
        assert '.' in argument.description, argument.name
        assert argument.default_value is not None, argument.name


@pytest.mark.parametrize('given', [
    {}, {'model': '7'}, {'device': 'cpu'}, {'model': 'models/chat', 'device': 'cuda'},
    {'activations': 'fp16', 'num_threads': 2}])
def test_only_what_is_given_overrides_the_parameter_file(launch_file, given):
    """An empty argument is none, and a name of digits stays a string."""
    context = launch.LaunchContext()
    context.launch_configurations.update(
        {**dict.fromkeys(launch_file.PARAMETERS, ''),
         **{name: str(value) for name, value in given.items()}})
    parameters = launch_file.given_parameters(context)
    assert {name: value.evaluate(context) for name, value in parameters.items()} == given


@pytest.mark.parametrize('image, topics', [
    ('', []), ('/camera/image_raw', [('~/image', '/camera/image_raw'),
                                     ('~/image/compressed', '/camera/image_raw/compressed')])])
def test_a_camera_is_found_under_the_names_of_image_transport(launch_file, image, topics):
    context = launch.LaunchContext()
    context.launch_configurations['image'] = image
    assert launch_file.camera_topics(context) == topics


@pytest.mark.parametrize('robots, expected', [
    ('alice', [{'namespace': 'alice'}]),
    ('alice, bob', [{'namespace': 'alice'}, {'namespace': 'bob'}]),
    ('[alice, {namespace: bob, num_threads: 1}]',
     [{'namespace': 'alice'}, {'namespace': 'bob', 'num_threads': 1}]),
])
def test_robots_are_names_or_arguments(robots, expected):
    """One set of arguments for each node."""
    from launch.launch_description_sources import load_python_launch_file_as_module
    robots_file = load_python_launch_file_as_module(str(ROBOTS_FILE))
    assert robots_file.arguments_of_each(robots) == expected
    with pytest.raises(ValueError, match='robots: expected names .* got'):
        robots_file.arguments_of_each('{namespace: alice}')


def test_an_unknown_log_level_is_refused(start):
    """The launch ends with an error instead of a node that logs something else."""
    assert start('log_level:=loud').wait(60) != 0


def test_the_node_starts_under_its_names_with_the_model_that_was_given(start, tmp_path):
    """Arguments reach the node, and Ctrl-C ends it and the launch."""
    model = write_chat_model(tmp_path / 'random_model')
    process = start(f'model:={model}', 'device:=cpu', 'namespace:=robot1', 'node_name:=brain')
    assert wait_for_model('/robot1/brain/status') == 'random_model on cpu'
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def test_the_parameter_file_names_the_model_where_no_argument_does(start, tmp_path):
    """params_file counts for what is not given."""
    model = write_chat_model(tmp_path / 'model_of_the_file')
    params_file = tmp_path / 'parameters.yaml'
    params_file.write_text(
        f'/**:\n  ros__parameters:\n    model: {model}\n    device: cpu\n')
    process = start(f'params_file:={params_file}')
    assert wait_for_model('/tinychat/status') == 'model_of_the_file on cpu'
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
