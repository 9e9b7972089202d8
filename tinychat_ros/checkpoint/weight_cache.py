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
Keeps the weights of a checkpoint as the CPU kernels read them, so that only its first load packs.

There is one file for each checkpoint folder, see :mod:`~tinychat_ros.checkpoint.weight_file`. It
is used where the checkpoint's files are what they were, as stat says or else by their content. A
file that cannot be used is written anew, and each may be deleted at any time. Processes do not
wait for each other: what they write appears under its name when it is whole.
"""

from __future__ import annotations

from contextlib import ExitStack
import logging
import os
from pathlib import Path
import shutil
from typing import Optional

from tinychat_ros.checkpoint.fingerprint import signature
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.weight_file import (
    digest, PackedWeight, remove_leftovers, WeightFile, write)
from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels.packing import tensors_of

# Fewer bytes of weights are packed in a moment.
LEAST_BYTES = 32 * 2**20
# Of the disk; others need it more.
LEAST_FREE_BYTES = 2**30

_LOGGER = logging.getLogger(__name__)


class WeightCache:
    """
    The packed weights of one open checkpoint; a context manager.

    :param folder: of the files of all checkpoints; made when it is needed.
    """

    def __init__(self, folder: Path, reader: CheckpointReader) -> None:
        path = reader.path.resolve()
        # A name has room for 255 bytes, and a character may take four.
        self.path = folder / f'{path.name[:40]}-{digest(os.fspath(path))[:16]}.safetensors'
        self._sources = reader.source_files()
        self._signature = signature(self._sources)
        self._reader = reader
        self._weights: dict[str, PackedWeight] = {}
        self._changed = False
        self._stack = ExitStack()
        self._file: Optional[WeightFile] = None
        try:
            self._file = self._open()
        except FileNotFoundError:
            pass
        except (OSError, CheckpointError) as error:
            self._give_up(error)

    def __enter__(self) -> WeightCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, name: str, n: int, k: int) -> Optional[PackedWeight]:
        """Return a weight [N, K], or None where it is not there."""
        if self._file is None or name not in self._file.facts.weights:
            return None
        try:
            self._weights[name] = self._file.read(name, n, k)
        except (OSError, CheckpointError) as error:
            self._give_up(error)
        return self._weights.get(name)

    def keep(self, name: str, weight: PackedWeight) -> None:
        """Remember a weight that has been packed."""
        if self._file is not None:
            self._give_up(f'it has no {name}')
        self._weights[name] = weight
        self._changed = True

    def save(self) -> None:
        """Write the file anew where it has to be; a failure is logged."""
        size = sum(tensor.nbytes for weight in self._weights.values()
                   for tensor in tensors_of(weight).values())
        if not self._changed or size < LEAST_BYTES:
            return
        try:
            self._write(size)
        except OSError as error:
            _LOGGER.warning('%s: the packed weights are not kept: %s', self.path, error)

    def _open(self) -> WeightFile:
        file = WeightFile(self._stack.enter_context(open(self.path, 'rb')))
        if file.facts.files != self._signature:
            if file.facts.content != self._reader.content_hash:
                raise CheckpointError('the checkpoint has changed')
            self._changed = True
        self._reader.know_content(file.facts.content)
        return file

    def _give_up(self, reason: object) -> None:
        _LOGGER.warning('%s: the weights are packed anew: %s', self.path, reason)
        self._file = None

    def _write(self, size: int) -> None:
        folder = self.path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(folder)
        free = shutil.disk_usage(folder).free
        if free < size + LEAST_FREE_BYTES:
            raise OSError(f'they take {size >> 20} of {free >> 20} MiB, and '
                          f'{LEAST_FREE_BYTES >> 20} MiB are to stay free')
        content = self._reader.content_hash
        if signature(self._sources) != self._signature:
            raise OSError('the checkpoint has changed while it was read')
        write(self.path, self._weights, content, self._signature)
        _LOGGER.info('%s: the packed weights are kept, %d MiB', self.path, size >> 20)
