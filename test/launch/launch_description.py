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
"""What the launch tests start, in a ROS domain and an installation of their own."""

from __future__ import annotations

import os
from pathlib import Path
import tempfile
from types import SimpleNamespace

from installation import install, LAUNCH_FILES
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription, RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch_testing.actions import ReadyToTest
from node_process import Client

from tinychat_ros.examples.loopback import isolate

# Gone when the last test is.
_FOLDER = tempfile.TemporaryDirectory()


def new_folder() -> Path:
    """Return an empty folder that lives as long as this process."""
    return Path(tempfile.mkdtemp(dir=_FOLDER.name))


def describe(launch_file: str, **arguments: str) -> tuple[LaunchDescription, dict]:
    """
    Return what launches a file of the package, for ``generate_test_description``.

    Its tests get `pids`, to which each process is added when it starts.
    """
    isolate()
    os.environ['AMENT_PREFIX_PATH'] = install(new_folder())
    pids: list[int] = []
    return LaunchDescription([
        RegisterEventHandler(
            OnProcessStart(on_start=lambda event, context: pids.append(event.pid))),
        IncludeLaunchDescription(
            str(LAUNCH_FILES / launch_file), launch_arguments=list(arguments.items())),
        ReadyToTest(),
    ]), {'pids': pids}


def connect(namespace: str) -> Client:
    """Return a client that every topic of the node in a namespace has reached."""
    return Client(SimpleNamespace(namespace=namespace, log='')).connect()
