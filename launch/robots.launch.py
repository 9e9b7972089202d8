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
"""
Launch one chat node for each robot, or for each model of a robot.

``robots:=alice,bob`` starts /alice/tinychat and /bob/tinychat.
``robots:='[{node_name: small, model: /models/a}, {node_name: large, model: /models/b}]'`` starts
/small and /large: an entry may hold any argument of chat.launch.py. Those that are given beside
``robots`` count for every node.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
import yaml

CHAT_LAUNCH_FILE = Path(__file__).with_name('chat.launch.py')

ROBOTS = DeclareLaunchArgument(
    'robots', default_value='alice,bob',
    description='Names of robots, which become namespaces, or a YAML list with the arguments of '
                'chat.launch.py for each node. Other arguments of chat.launch.py count for all.')


def arguments_of_each(robots: str) -> list:
    """
    Return the arguments of chat.launch.py for each node.

    :raises ValueError: it is neither names nor a list of names and arguments.
    """
    entries = yaml.safe_load(robots)
    if isinstance(entries, str):
        entries = [name.strip() for name in entries.split(',')]
    if not isinstance(entries, list) or not all(isinstance(e, (str, dict)) for e in entries):
        raise ValueError(f'robots: expected names with commas between them, or a YAML list of '
                         f'names and arguments, got {robots!r}')
    return [entry if isinstance(entry, dict) else {'namespace': entry} for entry in entries]


def start_nodes(context: LaunchContext) -> list:
    """Return the actions that start the nodes, each in a scope of its own."""
    return [GroupAction([IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(CHAT_LAUNCH_FILE)),
        launch_arguments=[(name, str(value)) for name, value in arguments.items()])])
        for arguments in arguments_of_each(LaunchConfiguration('robots').perform(context))]


def generate_launch_description() -> LaunchDescription:
    """Declare the argument and start the nodes."""
    return LaunchDescription([ROBOTS, OpaqueFunction(function=start_nodes)])
