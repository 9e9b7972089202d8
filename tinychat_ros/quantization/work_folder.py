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
"""The folder OUT.partial of a running quantization, from which a killed one goes on."""

from __future__ import annotations

from dataclasses import asdict
import fcntl
import json
import os
from pathlib import Path
import shutil
from typing import Any, Iterable, Mapping

from tinychat_ros.checkpoint.reader import read_json
from tinychat_ros.checkpoint.shards import join, read_metadata
from tinychat_ros.checkpoint.writer import (
    save_config, save_json, save_tensors, stored_tensors)
from tinychat_ros.errors import ConfigError
from tinychat_ros.kernels.linear import StoredWeight
from tinychat_ros.quantization.report import LayerResult

_LOCK, _STATE = 'lock', 'settings.json'


def partial_path(out: Path) -> Path:
    """Return the folder that a running quantization works in."""
    return out.with_name(f'{out.name}.partial')


class WorkFolder:
    """
    Holds one file for each finished block; the output folder appears when all is done.

    :param out: the output folder, which must not exist when all is done.
    :param settings: all that decides what is written; a run goes on only with the same.
    :param resume: go on with what an earlier run left, if it left anything.
    :raises ConfigError: the folder cannot be made or is not of an earlier run, or such a run is
        in the way, is still running or had other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.path = partial_path(out)
        self._out = out
        try:
            left = self.path.exists()
            if left:
                _check_left(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / _LOCK, 'w')
        except OSError as error:
            raise ConfigError(f'{out}: expected a folder that can be written, got: '
                              f'{error.strerror}') from None
        try:
            self._begin(settings, left, resume)
        except BaseException:
            self._lock.close()
            raise

    def _begin(self, settings: Mapping[str, Any], left: bool, resume: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f'{self.path}: another run is working in it') from None
        if left and not resume:
            raise ConfigError(f'{self.path}: an earlier run left this; go on with --resume, or '
                              'remove it')
        state = self.path / _STATE
        if state.exists():
            _check_same(self.path, read_json(state), settings)
        else:
            save_json(state, settings)

    def save(self, name: str, value: Any) -> None:
        """Keep something that JSON can hold."""
        save_json(self.path / f'{name}.json', {name: value})

    def load(self, name: str) -> Any:
        """Return what was kept, or None."""
        path = self.path / f'{name}.json'
        return read_json(path)[name] if path.exists() else None

    def has_block(self, index: int) -> bool:
        """
        Say whether a block is finished.

        :raises CheckpointError: its file is damaged.
        """
        return self._block(index).exists() and bool(self.results(index))

    def save_block(self, index: int, tensors: Mapping[str, StoredWeight],
                   results: Iterable[LayerResult]) -> None:
        """Keep a finished block."""
        rows = json.dumps([asdict(result) for result in results])
        save_tensors(self._block(index), stored_tensors(tensors), {'results': rows})

    def results(self, index: int) -> list[LayerResult]:
        """Return what was said of a finished block's layers."""
        rows = json.loads(read_metadata(self._block(index))['results'])
        return [LayerResult(**row) for row in rows]

    def finish(self, blocks: int, others: Mapping[str, StoredWeight], config: Mapping[str, Any],
               extra_files: Iterable[Path]) -> None:
        """
        Bring all blocks into the output folder, which appears complete.

        :param others: the tensors outside the blocks.
        :param config: the contents of config.json.
        """
        ready, rest = self.path / 'ready', self.path / 'others.safetensors'
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        save_tensors(rest, stored_tensors(others), {})
        join([rest, *map(self._block, range(blocks))], ready)
        save_config(ready, config, extra_files)
        os.rename(ready, self._out)
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Let another run work here."""
        self._lock.close()

    def _block(self, index: int) -> Path:
        return self.path / f'block-{index:05}.safetensors'


def _check_left(path: Path) -> None:
    """Refuse a folder of something else: all in it would be removed in the end."""
    names = {file.name for file in path.iterdir()}
    if _STATE not in names and (others := names - {_LOCK, f'.{_STATE}.partial'}):
        raise ConfigError(f'{path}: expected what an earlier run left, got a folder with '
                          f'{min(others)} and without {_STATE}')


def _check_same(path: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for key in (*settings, *before):
        if before.get(key) != settings.get(key):
            raise ConfigError(f'{path}: expected {key} = {before.get(key)!r} as in the run to go '
                              f'on with, got {settings.get(key)!r}')
