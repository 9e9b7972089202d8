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
"""The command `tinychat doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tinychat_ros.commands.common import output_options
from tinychat_ros.doctor import examine


def add(commands: Any) -> None:
    """Add ``doctor`` to the parser."""
    doctor = commands.add_parser(
        'doctor', parents=[output_options()],
        help='say what this machine has and what is missing')
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    findings = examine()
    table = sys.stderr if args.json else sys.stdout
    for key, value in findings.items():
        if key != 'problems':
            print(f'{key:12} {value}', file=table)
    for problem in findings['problems']:
        print(f'problem      {problem}', file=table)
    if not findings['problems']:
        print('no problems', file=table)
    if args.json:
        print(json.dumps(findings))
    return 0
