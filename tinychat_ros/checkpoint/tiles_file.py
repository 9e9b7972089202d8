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
A safetensors file of packed weights: read straight into large pages, written from where they are.

What is in it is believed only where the file is whole, ours, of this layout, and the checksum of
the weight is right.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import fcntl
import hashlib
import json
import os
from pathlib import Path
import tempfile
from typing import Any, BinaryIO, Mapping

import torch
from torch import Tensor

from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels import cpu, memory
from tinychat_ros.kernels.packing import cpu_tiles_shape, CpuTiles, LAYOUT_VERSION

PARTIAL = '.partial'

# Stays in a processor's cache between reading and checking.
_PIECE_BYTES = 2**20
_MAX_HEADER_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Facts:
    """
    What such a file says of itself.

    :param layout: LAYOUT_VERSION of the weights.
    :param content: SHA-256 of the checkpoint's files.
    :param files: their signature, when the file was written.
    :param weights: for each weight n, k, bits, block and checksum.
    """

    layout: int
    content: str
    files: list[list[Any]]
    weights: dict[str, dict[str, Any]]


class TilesFile:
    """
    An open file.

    :raises CheckpointError: it is not whole, not ours or of another layout.
    :raises OSError: it cannot be read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            header, self._begin = _read_header(file)
            metadata = header['__metadata__']
            seal = metadata.pop('sha256')
            self.facts = Facts(**json.loads(metadata['tinychat_ros']))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CheckpointError('it is no file of packed weights') from None
        if seal != digest(header):
            raise CheckpointError('its header is corrupt')
        if self.facts.layout != LAYOUT_VERSION:
            raise CheckpointError(f'its layout is {self.facts.layout}, not {LAYOUT_VERSION}')
        self._offsets = {name: header[name]['data_offsets'] for name in self.facts.weights}
        expected = self._begin + max(end for _, end in self._offsets.values())
        size = os.fstat(file.fileno()).st_size
        if size != expected:
            raise CheckpointError(f'it has {size} bytes, not {expected}')

    def read(self, name: str, n: int, k: int) -> CpuTiles:
        """
        Return the weight [N, K] of a linear that is among the facts.

        :raises CheckpointError: it is corrupt.
        """
        fact = self.facts.weights[name]
        if (fact['n'], fact['k']) != (n, k):
            raise CheckpointError(f"{name} is {fact['n']} x {fact['k']}, not {n} x {k}")
        data = memory.zeros(cpu_tiles_shape(n, k, fact['bits'], fact['block']), torch.uint8)
        self._file.seek(self._begin + self._offsets[name][0])
        checksums = []
        for piece in _pieces(data):
            self._file.readinto(memory.buffer(piece))
            checksums.append(cpu.checksum(piece))
        if digest(checksums) != fact['checksum']:
            raise CheckpointError(f'{name} is corrupt')
        return CpuTiles(data, n, k, fact['bits'], fact['block'])


def write(path: Path, weights: Mapping[str, CpuTiles], content: str,
          files: list[list[Any]]) -> None:
    """
    Write a file that appears whole or not at all.

    :param content: see Facts, as files.
    :raises OSError: it cannot be written, as on a full disk.
    """
    facts = Facts(LAYOUT_VERSION, content, files,
                  {name: _fact(weight) for name, weight in weights.items()})
    header = json.dumps(_header(weights, facts)).encode()
    header += b' ' * (-len(header) % 8)
    descriptor, partial = tempfile.mkstemp(PARTIAL, f'.{path.name}.', path.parent)
    try:
        with open(descriptor, 'wb') as file:
            # Tells other processes that it is no leftover.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(len(header).to_bytes(8, 'little') + header)
            for weight in weights.values():
                file.write(memory.buffer(weight.data))
            file.flush()
            # Without it, a power cut can leave an empty file under the new name.
            os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes were writing when they were killed."""
    for partial in folder.glob(f'.*{PARTIAL}'):
        with open(partial, 'rb') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            partial.unlink(missing_ok=True)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's text, in hexadecimal."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _pieces(data: Tensor) -> tuple[Tensor, ...]:
    return data.flatten().split(_PIECE_BYTES)


def _fact(weight: CpuTiles) -> dict[str, Any]:
    return {'n': weight.n, 'k': weight.k, 'bits': weight.bits, 'block': weight.block,
            'checksum': digest([cpu.checksum(piece) for piece in _pieces(weight.data)])}


def _header(weights: Mapping[str, CpuTiles], facts: Facts) -> dict[str, Any]:
    header: dict[str, Any] = {'__metadata__': {'tinychat_ros': json.dumps(asdict(facts))}}
    end = 0
    for name, weight in weights.items():
        begin, end = end, end + weight.data.nbytes
        header[name] = {'dtype': 'U8', 'shape': list(weight.data.shape),
                        'data_offsets': [begin, end]}
    header['__metadata__']['sha256'] = digest(header)
    return header


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where the data behind it begins."""
    size = int.from_bytes(file.read(8), 'little')
    if size > _MAX_HEADER_BYTES:
        raise ValueError(f'a header of {size} bytes')
    return json.loads(file.read(size)), 8 + size
