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
"""A checkpoint folder opened for reading: its JSON files and, by mmap, its tensors."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
import json
import math
import os
from pathlib import Path
from typing import AbstractSet, Any, Optional, Sequence

from safetensors import safe_open, SafetensorError
import torch
from torch import Tensor

from tinychat_ros.checkpoint.fingerprint import content_hash
from tinychat_ros.errors import CheckpointError
from tinychat_ros.models.fields import token_ids
from tinychat_ros.models.llava import placed
from tinychat_ros.models.registry import read_config

_DTYPE_BYTES = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2, 'I64': 8, 'I32': 4, 'I16': 2, 'I8': 1,
                'U8': 1, 'BOOL': 1}
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def read_json(path: Path) -> dict[str, Any]:
    """
    Read a JSON file that must hold one object.

    :raises CheckpointError: the file is missing, is not UTF-8 or not JSON, or holds another type.
    """
    try:
        value = json.loads(path.read_bytes().decode('utf-8'))
    except FileNotFoundError:
        raise CheckpointError(f'{path}: expected a file, and there is none') from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise CheckpointError(f'{path}: expected UTF-8, got byte 0x{byte:02x} at offset '
                              f'{error.start}') from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f'{path}: expected JSON, got: {error}') from None
    if not isinstance(value, dict):
        raise CheckpointError(f'{path}: expected a JSON object, got {type(value).__name__}')
    return value


class CheckpointReader:
    """
    One checkpoint folder, one safetensors file or several; a context manager.

    :param path: the folder that holds config.json.
    :raises CheckpointError: the folder is missing or a file in it is not what it says.
    """

    def __init__(self, path: Path) -> None:
        if not os.path.isdir(path):
            found = 'got a file' if os.path.exists(path) else 'and there is none'
            raise CheckpointError(f'{path}: expected a checkpoint folder, {found}')
        self.path = path
        self.config = read_config(read_json(path / 'config.json'))
        self._stack = ExitStack()
        self._files = {}
        self._shards = _shards(path)
        self._content_hash = ''
        try:
            for shard in self._shards:
                handle = self._stack.enter_context(open_tensors(shard))
                self._files.update({name: handle for name in handle.keys()})
        except BaseException:
            self._stack.close()
            raise
        if self.config.names.blocks.startswith('language_model.'):
            self.config = placed(self.config, self.names)
            if self.config.vision is None:
                self._files = {name: file for name, file in self._files.items()
                               if 'language_model.' in name or name.startswith('lm_head.')}

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> AbstractSet[str]:
        """Return the names of all tensors."""
        return self._files.keys()

    def source_files(self) -> list[Path]:
        """Return the files that make the weights what they are."""
        described = (self.path / name for name in ('config.json', 'quant_config.json'))
        return [*self._shards, *(path for path in described if path.exists())]

    @property
    def content_hash(self) -> str:
        """Return the SHA-256 of these files, which are read for it unless it is known already."""
        if not self._content_hash:
            self._content_hash = content_hash(self.source_files())
        return self._content_hash

    def know_content(self, content: str) -> None:
        """Take a hash over from who knows that the files are what they were."""
        self._content_hash = content

    def generation_config(self) -> dict[str, Any]:
        """Return generation_config.json, empty where there is none."""
        path = self.path / 'generation_config.json'
        return read_json(path) if path.exists() else {}

    def stop_token_ids(self) -> tuple[int, ...]:
        """Return the ids that end an answer; generation_config.json overrides config.json."""
        return token_ids(self.generation_config().get('eos_token_id')) or self.config.eos_token_ids

    @cached_property
    def claimed_group_size(self) -> Optional[int]:
        """Return what config.json or the older quant_config.json says; -1 is one group per row."""
        older = self.path / 'quant_config.json'
        claims = read_json(self.path / 'config.json').get('quantization_config')
        if claims is None and older.exists():
            claims = read_json(older)
        if not isinstance(claims, dict):
            return None
        size = claims.get('group_size', claims.get('q_group_size'))
        return size if isinstance(size, int) else None

    def shape(self, name: str) -> list[int]:
        """Return a tensor's shape without reading it."""
        return self._file(name).get_slice(name).get_shape()

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Return a matrix's shape without reading it, after checking that it is one."""
        shape = self.shape(name)
        if len(shape) != 2 or 0 in shape:
            raise CheckpointError(f'{name}: expected two dimensions of at least 1, got {shape}')
        return shape[0], shape[1]

    def num_bytes(self, name: str) -> int:
        """Return what a tensor takes in the file, in bytes."""
        view = self._file(name).get_slice(name)
        if view.get_dtype() not in _DTYPE_BYTES:
            raise CheckpointError(f"{name}: expected a dtype of {', '.join(_DTYPE_BYTES)}, "
                                  f'got {view.get_dtype()}')
        return _DTYPE_BYTES[view.get_dtype()] * math.prod(view.get_shape())

    def raw(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor as stored, after checking its shape and dtype."""
        tensor = self._read(name, shape)
        if tensor.dtype != dtype:
            raise CheckpointError(f'{name}: expected {dtype}, got {tensor.dtype}')
        return tensor

    def stored(self, name: str) -> Tensor:
        """Return a tensor as stored, whatever it is."""
        return self._file(name).get_tensor(name)

    def floats(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a float tensor as stored, after checking its shape, dtype and values."""
        tensor = self._read(name, shape)
        if tensor.dtype not in _FLOAT_DTYPES:
            raise CheckpointError(f'{name}: expected fp32, fp16 or bf16, got {tensor.dtype}')
        # It copies nothing: isfinite() took thirty times as long for an embedding.
        if tensor.numel() and not all(map(math.isfinite, torch.aminmax(tensor))):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(f'{name}: expected finite values, got NaN or infinity in '
                                  f'{bad} of {tensor.numel()}')
        return tensor

    def _read(self, name: str, shape: Sequence[int]) -> Tensor:
        found = self.shape(name)
        if found != list(shape):
            raise CheckpointError(f'{name}: expected shape {list(shape)}, got {found}')
        return self.stored(name)

    def _file(self, name: str) -> Any:
        if name not in self._files:
            raise CheckpointError(f'{self.path}: expected a tensor {name}, and it is missing')
        return self._files[name]


def _shards(path: Path) -> list[Path]:
    single, index = path / 'model.safetensors', path / 'model.safetensors.index.json'
    if single.exists():
        return [single]
    if index.exists():
        weight_map = read_json(index).get('weight_map')
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: expected the key 'weight_map' with tensor names")
        names = {_file_name(index, value) for value in weight_map.values()}
        return [path / name for name in sorted(names)]
    raise CheckpointError(f'{path}: expected model.safetensors or model.safetensors.index.json, '
                          f'got {_other_weights(path)}')


def _other_weights(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir())
    pickles = [name for name in names if name.endswith(('.bin', '.pt', '.pth'))]
    if pickles:
        return (f'only {pickles[0]}, a pickle, which can run code; transformers that loads and '
                'saves it writes safetensors')
    others = [name for name in names if name.endswith(('.safetensors', '.gguf'))]
    return f'only {others[0]}' if others else 'none'


def _file_name(index: Path, shard: Any) -> str:
    """Refuse a path: it would read outside the folder."""
    if not isinstance(shard, str) or shard in ('', '..') or Path(shard).name != shard:
        raise CheckpointError(f'{index}: expected names of files beside it, got {shard!r}')
    return shard


def open_tensors(shard: Path) -> Any:
    """
    Open a safetensors file, a context manager.

    :raises CheckpointError: the file is missing, may not be read or is not whole.
    """
    try:
        return safe_open(shard, framework='pt')
    except FileNotFoundError:
        # safetensors says the same of a file that it may not read.
        found = 'got one that may not be read' if shard.exists() else 'and there is none'
        raise CheckpointError(f'{shard}: expected a file, {found}') from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f'{shard}: expected a whole safetensors file, got: '
                              f'{error}') from None
