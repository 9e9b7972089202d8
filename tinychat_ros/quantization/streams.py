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
"""The calibration sequences on their way through the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tinychat_ros.quantization.activations import Activations

ORIGINAL, QUANTIZED = 'original', 'quantized'
# Which streams of activations each choice of inputs takes; see method.Method.
STREAMS = {'original': (ORIGINAL,), 'quantized': (QUANTIZED,),
           'corrected': (QUANTIZED, ORIGINAL)}


class Streams:
    """
    What enters a part of the model, in the original model and in the quantized one.

    :param names: of STREAMS; the first is what the quantizer takes as a block's inputs.
    """

    def __init__(self, folder: Path, names: Sequence[str], lengths: Sequence[int], width: int,
                 device: torch.device) -> None:
        self._folder, self._names, self._lengths = folder, names, lengths
        self._width, self._device = width, device

    @property
    def empty(self) -> bool:
        """Say whether nothing is streamed."""
        return not self._names

    def begin(self, place: str, embedded: Callable[[], Iterator[Tensor]]) -> None:
        """Write what enters the first block, unless an earlier run did."""
        for name in self._names:
            file = self._file(name, place)
            if not file.exists():
                file.write(embedded())

    def pairs(self, place: str, count: int = -1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for the first ``count`` sequences what enters: quantized and original [T, H]."""
        files = [self._file(name, place).read(self._device, count) for name in self._names]
        for entering in zip(*files):
            yield entering[0], entering[-1]

    def advance(self, place: str, behind: str, run: Callable[[str, Tensor], Tensor]) -> None:
        """Write what leaves, run(stream, x) of each sequence that enters at a place."""
        for name in self._names:
            entering = self._file(name, place).read(self._device)
            self._file(name, behind).write(run(name, x) for x in entering)

    def forget(self, place: str) -> None:
        """Delete what stood at a place."""
        for name in self._names:
            self._file(name, place).remove()

    def _file(self, name: str, place: str) -> Activations:
        return Activations(self._folder / f'{name}-{place}.bin', self._lengths, self._width)
