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
"""Launch the chat node; --show-args of `ros2 launch` tells its arguments."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PARAMS_FILE = PathJoinSubstitution([FindPackageShare('tinychat_ros'), 'config', 'tinychat.yaml'])

# The arguments that are parameters of the node, with their types.
PARAMETERS = {'model': str, 'device': str, 'activations': str, 'num_threads': int}

ARGUMENTS = (
    DeclareLaunchArgument(
        'model', default_value='',
        description='Folder of the model; empty = the one of params_file, and where that names '
                    'none, the demo model.'),
    DeclareLaunchArgument(
        'device', default_value='',
        description="'cpu', 'cuda' or 'auto', which takes the GPU where there is one; empty = "
                    'the one of params_file.'),
    DeclareLaunchArgument(
        'activations', default_value='',
        description="'fp16' (W4A16), 'int8' (W4A8) or 'auto', the faster of them; empty = the one "
                    'of params_file.'),
    DeclareLaunchArgument(
        'num_threads', default_value='',
        description='CPU threads, 0 for every core; empty = the number of params_file.'),
    DeclareLaunchArgument(
        'namespace', default_value='',
        description="Namespace of the node, such as the robot's name."),
    DeclareLaunchArgument(
        'node_name', default_value='tinychat',
        description='Name of the node; two models on one robot need two names.'),
    DeclareLaunchArgument(
        'image', default_value='',
        description="Topic of a camera's images for a model that sees; its compressed ones are "
                    'taken as well, from the topic below it. Empty = ~/image of the node.'),
    DeclareLaunchArgument(
        'params_file', default_value=PARAMS_FILE,
        description='YAML file with the parameters of the node. The arguments above that are not '
                    'empty go before it.'),
    DeclareLaunchArgument(
        'respawn', default_value='false', choices=['true', 'false'],
        description='Whether a node that ended by itself is started again; its conversations '
                    'begin anew.'),
    DeclareLaunchArgument(
        'respawn_delay', default_value='2.0',
        description='Time between the end of a node and its new start [s].'),
    DeclareLaunchArgument(
        'log_level', default_value='info',
        choices=['debug', 'info', 'warn', 'error', 'fatal'],
        description='The least severe messages that the node logs.'),
)


def given_parameters(context: LaunchContext) -> dict:
    """Return the parameters given as arguments; an empty one leaves params_file alone."""
    given = {name: LaunchConfiguration(name) for name in PARAMETERS}
    return {name: ParameterValue(value, value_type=PARAMETERS[name])
            for name, value in given.items() if value.perform(context)}


def camera_topics(context: LaunchContext) -> list:
    """Return where the node finds its images, as image_transport names the topics."""
    image = LaunchConfiguration('image').perform(context)
    return [(f'~/image{kind}', image + kind) for kind in ('', '/compressed')] if image else []


def start_node(context: LaunchContext) -> list:
    """Return the action that starts the node with the parameters that were given."""
    return [Node(
        package='tinychat_ros',
        executable='chat_node',
        namespace=LaunchConfiguration('namespace'),
        name=LaunchConfiguration('node_name'),
        remappings=camera_topics(context),
        parameters=[LaunchConfiguration('params_file'), given_parameters(context)],
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        respawn=LaunchConfiguration('respawn'),
        respawn_delay=float(LaunchConfiguration('respawn_delay').perform(context)),
        output='screen',
        emulate_tty=True,
    )]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start_node)])
