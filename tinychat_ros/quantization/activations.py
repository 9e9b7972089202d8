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
"""Activations of all calibration sequences, kept on disk between blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from tinychat_ros.checkpoint.writer import replace_file
from tinychat_ros.errors import CheckpointError

_BYTES = 4


class Activations:
    """
    A file of fp32 [T, H] for each sequence, one after another.

    It is read and written a sequence at a time: mapped, it would count as memory of the process.
    """

    def __init__(self, path: Path, lengths: Sequence[int], width: int) -> None:
        self._path, self._lengths, self._width = path, lengths, width

    def write(self, sequences: Iterable[Tensor]) -> None:
        """Write all sequences; the file appears when the last one is in it."""
        def write(partial: Path) -> None:
            with open(partial, 'wb') as file:
                for sequence in sequences:
                    file.write(sequence.contiguous().cpu().numpy().tobytes())

        replace_file(self._path, write)

    def read(self, device: torch.device, count: int = -1) -> Iterator[Tensor]:
        """
        Yield the first ``count`` sequences, or all, each [T, H].

        :raises CheckpointError: the file is not there or not whole.
        """
        expected = sum(self._lengths) * self._width * _BYTES
        found = self._path.stat().st_size if self.exists() else 'no file'
        if found != expected:
            raise CheckpointError(f'{self._path}: expected {expected} bytes of activations, got '
                                  f'{found}')
        lengths = self._lengths if count < 0 else self._lengths[:count]
        with open(self._path, 'rb') as file:
            for length in lengths:
                data = bytearray(file.read(length * self._width * _BYTES))
                yield torch.frombuffer(data, dtype=torch.float32).view(length, -1).to(device)

    def exists(self) -> bool:
        """Say whether the file was written to its end."""
        return self._path.exists()

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)
