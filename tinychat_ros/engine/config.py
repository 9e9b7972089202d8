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
"""The engine's options, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
import os
from pathlib import Path
import re
from typing import Collection, Optional

import torch

from tinychat_ros.checkpoint.loader import available_memory
from tinychat_ros.errors import ConfigError
from tinychat_ros.kernels import cpu
from tinychat_ros.models.config import ModelConfig

DEMO_MODEL = Path(__file__).resolve().parent.parent / 'demo_model'
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
DEVICES = ('auto', 'cpu', 'cuda')
KV_CACHE_DTYPES = ('auto', 'int8')
LM_HEAD_DTYPES = ('auto', 'int8', 'int4')
# What load_model is told: where it is faster, nowhere, everywhere.
ACTIVATIONS = {'auto': None, 'fp16': False, 'int8': True}

# Enough for a talk, and four slots of a 7B model still fit beside its weights in 16 GB.
_DEFAULT_MAX_SEQ_LEN = 2048

_FREE_MEMORY_SHARE = 0.9

# Below this, torch's threads wait for each other longer than they compute: for 200 tokens of a
# model of 1 MB on a busy machine, one thread took 0.2 s and two took 1 to 11 s.
_SMALL_MODEL_BYTES = 32 * 2**20
_MAX_THREADS = 1024


@dataclass(frozen=True)
class EngineConfig:
    """
    What an engine loads and how much it may take.

    :param model: checkpoint folder; '' or 'demo' is the embedded demo model.
    :param device: 'cpu', 'cuda', or 'auto': the GPU where there is one.
    :param dtype: of activations and plain weights; 'auto' is float32 on the CPU and float16 on
        the GPU, or bfloat16 for a model that exceeds float16.
    :param max_seq_len: positions per slot, prompt and answer together; 0 is what the model was
        trained for, at most 2048.
    :param activations: of linears of 4 bits or less. 'fp16' leaves them in dtype (W4A16), 'int8'
        rounds them by groups (W4A8), 'auto' rounds where that is faster: on the CPU.
    :param num_slots: conversations whose KV cache is kept.
    :param kv_cache_dtype: of keys and values: 'auto' is that of the activations, or float16 where
        the CPU kernels run and dtype is 'auto'; 'int8' takes half the memory of 16 bits, and half
        the time to read.
    :param lm_head_dtype: 'auto' leaves the LM head as it is stored; 'int8' and 'int4' round a
        plain one, which each token then reads in half or a quarter of the time of 16 bits.
    :param memory_budget: bytes for weights and KV cache; 0 is 90 % of what is free.
    :param weight_cache: folder in which weights stay as they are packed for CPU kernels, so that
        the next start is faster; '' is tinychat_ros below $XDG_CACHE_HOME or ~/.cache, 'off' none.
    :param num_threads: of torch and the CPU kernels, in this whole process; 0 is every core that
        it may use, or one for a model so small that threads cost more than they bring.
    :param processors: that the threads which generate keep to on the CPU, such as '0-3,6'; '' is
        all that this process may use.
    :param prefill_chunk: tokens per piece of a prefill; cancelling waits for one piece.
    :param chat_template: path of a Jinja file; '' is the checkpoint's own or, where it has none,
        that of chat_fallback.py for models called as it is.
    :param system_prompt: for conversations that bring none.
    :raises ConfigError: an option is out of its range.
    """

    model: str = ''
    device: str = 'auto'
    dtype: str = 'auto'
    max_seq_len: int = 0
    activations: str = 'auto'
    num_slots: int = 4
    kv_cache_dtype: str = 'auto'
    lm_head_dtype: str = 'auto'
    memory_budget: int = 0
    weight_cache: str = ''
    num_threads: int = 0
    processors: str = ''
    prefill_chunk: int = 256
    chat_template: str = ''
    system_prompt: str = ''

    def __post_init__(self) -> None:
        _check_choice('device', self.device, DEVICES)
        _check_choice('dtype', self.dtype, ('auto', *DTYPES))
        _check_choice('activations', self.activations, ACTIVATIONS)
        _check_choice('lm_head_dtype', self.lm_head_dtype, LM_HEAD_DTYPES)
        _check_choice('kv_cache_dtype', self.kv_cache_dtype, KV_CACHE_DTYPES)
        for name, lowest in (('max_seq_len', 0), ('num_slots', 1), ('memory_budget', 0),
                             ('num_threads', 0), ('prefill_chunk', 1)):
            value = getattr(self, name)
            if value < lowest:
                raise ConfigError(f'{name}: expected {lowest} or more, got {value}')
        if self.num_threads > _MAX_THREADS:
            raise ConfigError(f'num_threads: expected at most {_MAX_THREADS}, '
                              f'got {self.num_threads}')
        self.processor_set()
        if self.device == 'cuda' and not torch.cuda.is_available():
            raise ConfigError('device: expected a GPU for cuda, and torch finds none')

    @property
    def model_path(self) -> Path:
        """Return the checkpoint folder."""
        return DEMO_MODEL if self.model in ('', 'demo') else Path(os.path.expanduser(self.model))

    @property
    def model_name(self) -> str:
        """Return what that folder is called, or its repository in the hub's cache."""
        folder = self.model_path.resolve()
        repository = folder.parents[1].name if folder.parent.name == 'snapshots' else ''
        return repository.rpartition('--')[2] or folder.name

    @property
    def weight_cache_path(self) -> Optional[Path]:
        """Return the folder of packed weights, or None for none."""
        if self.weight_cache == 'off':
            return None
        default = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
        path = Path(os.path.expanduser(self.weight_cache or os.path.join(default, 'tinychat_ros')))
        # A process may have no home, and the caches of others do not belong in its folder.
        return path if self.weight_cache or path.is_absolute() else None

    def for_model(self, shape: ModelConfig) -> EngineConfig:
        """Return these options with the dtype that 'auto' is for a model on a GPU."""
        if shape.exceeds_fp16 and self.dtype == 'auto' and self.torch_device().type == 'cuda':
            return replace(self, dtype='bfloat16')
        return self

    def torch_device(self) -> torch.device:
        """Return the device to run on."""
        if self.device == 'auto':
            return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        return torch.device(self.device)

    def torch_dtype(self) -> torch.dtype:
        """Return the compute dtype."""
        if self.dtype == 'auto':
            return torch.float16 if self.torch_device().type == 'cuda' else torch.float32
        return DTYPES[self.dtype]

    def torch_kv_dtype(self) -> torch.dtype:
        """Return the dtype of the KV cache."""
        if self.kv_cache_dtype == 'int8':
            return torch.int8
        dtype = self.torch_dtype()
        kernels = self.dtype == 'auto' and cpu.serves(dtype, self.torch_device())
        return torch.float16 if kernels else dtype

    def budget(self) -> int:
        """Return the bytes that weights and KV cache may take."""
        return self.memory_budget or int(
            _FREE_MEMORY_SHARE * available_memory(self.torch_device()))

    def threads(self, weight_bytes: int) -> int:
        """Return how many threads run a model with weights of this size."""
        if self.num_threads:
            return self.num_threads
        every = self.processor_set() or os.sched_getaffinity(0)
        return 1 if weight_bytes < _SMALL_MODEL_BYTES else len(every)

    def processor_set(self) -> frozenset[int]:
        """Return the numbers of the processors to keep to, none for all."""
        if not self.processors:
            return frozenset()
        ranges = re.findall(r'(?:^|,)(\d+)(?:-(\d+))?(?=,|$)', self.processors)
        numbers = frozenset(number for first, last in ranges
                            for number in range(int(first), int(last or first) + 1))
        allowed = os.sched_getaffinity(os.getpid())
        if len(ranges) != self.processors.count(',') + 1 or not numbers or not numbers <= allowed:
            raise ConfigError(f"processors: expected a list such as '0-3,6', of "
                              f'{sorted(allowed)}, got {self.processors!r}')
        return numbers

    def seq_len(self, max_position_embeddings: int) -> int:
        """Return the positions per slot for a model that was trained for so many."""
        if self.max_seq_len > max_position_embeddings:
            raise ConfigError(f'max_seq_len: expected at most {max_position_embeddings}, what the '
                              f'model was trained for, got {self.max_seq_len}')
        return self.max_seq_len or min(max_position_embeddings, _DEFAULT_MAX_SEQ_LEN)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
