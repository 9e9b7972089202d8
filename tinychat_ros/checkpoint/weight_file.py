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

from contextlib import suppress
from dataclasses import asdict, dataclass
import fcntl
import hashlib
import json
import os
from pathlib import Path
import tempfile
from typing import Any, BinaryIO, Mapping, Union

import torch
from torch import Tensor

from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels import cpu, memory
from tinychat_ros.kernels.packing import CpuTiles, Int8Weight, LAYOUT_VERSION, tensors_of

PackedWeight = Union[CpuTiles, Int8Weight]

PARTIAL = '.partial'

# Stays in a processor's cache between reading and checking.
_PIECE_BYTES = 2**20
_MAX_HEADER_BYTES = 16 * 2**20

_KINDS = {'tiles': CpuTiles, 'int8': Int8Weight}
_DTYPES = {'U8': torch.uint8, 'I8': torch.int8, 'F32': torch.float32}


@dataclass(frozen=True)
class Facts:
    """
    What such a file says of itself.

    :param layout: LAYOUT_VERSION of the weights.
    :param content: SHA-256 of the checkpoint's files.
    :param files: their signature, when the file was written.
    :param weights: for each weight its kind, its sizes and the checksums of its tensors.
    """

    layout: int
    content: str
    files: list[list[Any]]
    weights: dict[str, dict[str, Any]]


class WeightFile:
    """
    An open file.

    :raises CheckpointError: it is not whole, not ours or of another layout.
    :raises OSError: it cannot be read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            self._header, self._begin = _read_header(file)
            metadata = self._header['__metadata__']
            seal = metadata.pop('sha256')
            self.facts = Facts(**json.loads(metadata['tinychat_ros']))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CheckpointError('it is no file of packed weights') from None
        if seal != digest(self._header):
            raise CheckpointError('its header is corrupt')
        if self.facts.layout != LAYOUT_VERSION:
            raise CheckpointError(f'its layout is {self.facts.layout}, not {LAYOUT_VERSION}')
        del self._header['__metadata__']
        expected = self._begin + max(e['data_offsets'][1] for e in self._header.values())
        size = os.fstat(file.fileno()).st_size
        if size != expected:
            raise CheckpointError(f'it has {size} bytes, not {expected}')

    def read(self, name: str, n: int, k: int) -> PackedWeight:
        """
        Return a weight [N, K] that is among the facts.

        :raises CheckpointError: it is corrupt, or has another shape.
        """
        fact = self.facts.weights[name]
        tensors = {field: self._read(f'{name}.{field}', checksum)
                   for field, checksum in fact['checksums'].items()}
        weight = _KINDS[fact['kind']](**tensors, **fact['sizes'])
        if weight.shape != (n, k):
            raise CheckpointError(f'{name} is {list(weight.shape)}, not {[n, k]}')
        return weight

    def _read(self, name: str, checksum: str) -> Tensor:
        entry = self._header[name]
        tensor = memory.zeros(entry['shape'], _DTYPES[entry['dtype']])
        self._file.seek(self._begin + entry['data_offsets'][0])
        checksums = []
        for piece in _pieces(tensor):
            self._file.readinto(memory.buffer(piece))
            checksums.append(cpu.checksum(piece))
        if digest(checksums) != checksum:
            raise CheckpointError(f'{name} is corrupt')
        return tensor


def write(path: Path, weights: Mapping[str, PackedWeight], content: str,
          files: list[list[Any]]) -> None:
    """
    Write a file that appears whole or not at all.

    :param content: see Facts, as files.
    :raises OSError: it cannot be written, as on a full disk.
    """
    facts = Facts(LAYOUT_VERSION, content, files,
                  {name: _fact(weight) for name, weight in weights.items()})
    tensors = {f'{name}.{field}': tensor for name, weight in weights.items()
               for field, tensor in tensors_of(weight).items()}
    header = json.dumps(_header(tensors, facts)).encode()
    header += b' ' * (-len(header) % 8)
    descriptor, partial = tempfile.mkstemp(PARTIAL, f'.{path.name}.', path.parent)
    try:
        with open(descriptor, 'wb') as file:
            # Tells other processes that it is no leftover.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(len(header).to_bytes(8, 'little') + header)
            for tensor in tensors.values():
                file.write(memory.buffer(tensor))
            file.flush()
            # Without it, a power cut can leave an empty file under the new name.
            os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes were writing when they were killed."""
    for partial in folder.glob(f'.*{PARTIAL}'):
        # The lock is refused while the process that writes it lives.
        with suppress(OSError), open(partial, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's text, in hexadecimal."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.flatten().view(torch.uint8).split(_PIECE_BYTES)


def _fact(weight: PackedWeight) -> dict[str, Any]:
    tensors = tensors_of(weight)
    return {'kind': next(kind for kind, cls in _KINDS.items() if isinstance(weight, cls)),
            'sizes': {field: size for field, size in vars(weight).items()
                      if field not in tensors},
            'checksums': {field: digest([cpu.checksum(piece) for piece in _pieces(tensor)])
                          for field, tensor in tensors.items()}}


def _header(tensors: Mapping[str, Tensor], facts: Facts) -> dict[str, Any]:
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {'__metadata__': {'tinychat_ros': json.dumps(asdict(facts))}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {'dtype': names[tensor.dtype], 'shape': list(tensor.shape),
                        'data_offsets': [begin, end]}
    header['__metadata__']['sha256'] = digest(header)
    return header


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where the data behind it begins."""
    size = int.from_bytes(file.read(8), 'little')
    if size > _MAX_HEADER_BYTES:
        raise ValueError(f'a header of {size} bytes')
    return json.loads(file.read(size)), 8 + size
