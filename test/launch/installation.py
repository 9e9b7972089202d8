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
"""An installation of the source tree, in which launch finds the package."""

from __future__ import annotations

import os
from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILES = ROOT / 'launch'

_NODE = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from tinychat_ros.nodes.chat_node import main
sys.exit(main())
"""


def install(prefix: Path) -> str:
    """Install the package into a folder; return the AMENT_PREFIX_PATH that leads there first."""
    share = prefix / 'share' / 'tinychat_ros'
    index = prefix / 'share' / 'ament_index' / 'resource_index' / 'packages'
    executables = prefix / 'lib' / 'tinychat_ros'
    for folder in (share, index, executables):
        folder.mkdir(parents=True)
    (share / 'config').symlink_to(ROOT / 'config')
    (index / 'tinychat_ros').touch()
    (executables / 'chat_node').write_text(_NODE)
    (executables / 'chat_node').chmod(0o755)
    return f'{prefix}:{os.environ.get("AMENT_PREFIX_PATH", "")}'
