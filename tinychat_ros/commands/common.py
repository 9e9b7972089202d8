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
"""What the commands share: exit codes, the line of an error, and options."""

from __future__ import annotations

import argparse
import sys

from tinychat_ros.engine.config import DEVICES, DTYPES
from tinychat_ros.errors import TinychatError

FAILED, WRONG_USAGE = 1, 2
WEIGHT_CACHE_HELP = ('where weights stay as they are packed for the CPU, or off '
                     '(default: tinychat_ros in the cache folder of the user)')


def print_error(error: Exception) -> None:
    """Say in one line on stderr what went wrong."""
    kind = '' if isinstance(error, TinychatError) else f'{type(error).__name__}: '
    print(f'tinychat: error: {kind}{error}', file=sys.stderr)


def output_options() -> argparse.ArgumentParser:
    """Return the options of every command."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument('--json', action='store_true',
                         help='print one JSON document as the last line of stdout')
    options.add_argument('--verbose', action='store_true',
                         help='log more, and show the traceback of an error')
    return options


PROCESSORS_HELP = "that the threads which generate keep to, such as 0-3,6 (default: all)"


def device_options(dtype: bool = True) -> argparse.ArgumentParser:
    """Return the options of the commands that run a model, --dtype among them or not."""
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group('device')
    group.add_argument('--device', default='auto', choices=DEVICES,
                       help='default: auto, the GPU where there is one')
    if dtype:
        group.add_argument('--dtype', default='auto', choices=('auto', *DTYPES),
                           help='of activations (default: auto, float32 on the CPU)')
    group.add_argument('--threads', type=int, default=0, metavar='N',
                       help='CPU threads (default: 0, every core, or one for a small model)')
    return options
