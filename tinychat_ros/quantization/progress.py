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
"""How far a run has come: bars on a terminal, and anywhere else a line after each block."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_LINE = '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]'


class Progress:
    """
    Shows blocks and the layers in them, with the time left; a context manager.

    :param done: blocks that an earlier run finished.
    :param layers: of a block.
    """

    def __init__(self, title: str, done: int, total: int, layers: int) -> None:
        self._about = {'total': total, 'initial': done, 'unit': 'block'}
        self._title, self._done, self._begin = title, done, time.monotonic()
        self._blocks = tqdm(desc=title, disable=None, **self._about)
        self._layers = tqdm(initial=done * layers, total=total * layers, desc='layers',
                            unit='layer', leave=False, disable=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._layers.close()
        self._blocks.close()

    def add_layers(self, count: int) -> None:
        """Show that layers are finished."""
        self._layers.update(count)

    def add_block(self) -> None:
        """Show that a block is finished."""
        self._done += 1
        self._blocks.update()
        # A bar redraws itself with carriage returns, which only make a log file long.
        if self._blocks.disable:
            print(tqdm.format_meter(self._done, elapsed=time.monotonic() - self._begin,
                                    prefix=self._title, bar_format=_LINE, **self._about),
                  file=sys.stderr, flush=True)
