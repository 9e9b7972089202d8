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
"""What to quantize and how, checked before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
import hashlib
import math
import os
from pathlib import Path
import shutil
from typing import Any, Optional, Sequence, Union

import torch
from torch import Tensor

from tinychat_ros.checkpoint import formats
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import ConfigError, UnsupportedModelError
from tinychat_ros.kernels.rtn import WeightSpec
from tinychat_ros.quantization.block import why_left
from tinychat_ros.quantization.method import Method
from tinychat_ros.quantization.recipes import recipe
from tinychat_ros.quantization.source import in_blocks, load_block, other_tensors
from tinychat_ros.quantization.work_folder import partial_path

_CPU = torch.device('cpu')


@dataclass(frozen=True)
class WeightOnly:
    """W4A16 or W3A16: weights on a grid of groups, by one of the methods."""

    method: Method
    spec: WeightSpec


@dataclass(frozen=True)
class SmoothQuant:
    """W8A8; without an alpha, the best of a few for this model is taken."""

    alpha: Optional[float] = None

    def __post_init__(self) -> None:
        """Refuse an alpha that would not balance anything."""
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ConfigError(f'alpha: expected 0 to 1, got {self.alpha}')


@dataclass(frozen=True)
class Job:
    """
    What to quantize and how.

    :param samples: calibration sequences, int64 [T] each; not read where the method needs none.
    :param search_samples: on how many of them scales are tried.
    """

    source: Path
    out: Path
    scheme: Union[WeightOnly, SmoothQuant]
    samples: Sequence[Tensor] = ()
    search_samples: int = 8
    device: torch.device = _CPU

    def __post_init__(self) -> None:
        """Refuse an output folder that exists, or whose work folder and the source overlap."""
        if os.path.lexists(self.out):
            raise ConfigError(f'{self.out}: expected an output folder that does not exist yet')
        source, work = self.source.resolve(), partial_path(self.out).resolve()
        if work.is_relative_to(source) or source.is_relative_to(work):
            raise ConfigError(f'{self.out}: expected a folder outside of the source '
                              f'{self.source}')

    @property
    def calibrated(self) -> bool:
        """Say whether calibration samples decide anything."""
        return isinstance(self.scheme, SmoothQuant) or self.scheme.method.calibrated


def check(job: Job) -> None:
    """
    Refuse a job that cannot be done, before any of it is.

    :raises TinychatError: naming what is wrong with the source or the job.
    """
    with CheckpointReader(job.source) as reader:
        _check_headers(job, reader)
        other_tensors(reader)
    # Each tensor is read once now, so that a bad one is not found after hours.
    for index in range(reader.config.num_hidden_layers):
        load_block(job.source, index, _CPU)


def _check_headers(job: Job, reader: CheckpointReader) -> None:
    recipe(reader.config)
    names = sorted(formats.layer_names(reader))
    for name in names:
        found = formats.detect(reader, name).name
        if found != 'plain':
            raise UnsupportedModelError(f'{reader.path}: expected plain weights, got {name} in '
                                        f'the format {found}: it is quantized already')
    if isinstance(job.scheme, WeightOnly):
        shapes = [reader.shape(f'{name}.weight') for name in names
                  if in_blocks(reader.config, name)]
        if all(why_left(n, k, job.scheme.spec) for n, k in shapes):
            widths = ' or '.join(str(k) for k in sorted({k for _, k in shapes}))
            raise ConfigError(f'group size: expected a divisor of a K of this model, {widths}, '
                              f'got {job.scheme.spec.group_size}')
    if job.calibrated and not job.samples:
        raise ConfigError('calibration: expected at least one sample, got none')
    vocabulary = reader.config.vocab_size
    largest = max((int(sample.max()) for sample in job.samples), default=0)
    if largest >= vocabulary:
        raise ConfigError(f'calibration: expected token ids below {vocabulary}, got {largest}: '
                          'the tokenizer is of another model')
    _check_room(job, reader)


def _check_room(job: Job, reader: CheckpointReader) -> None:
    """Refuse a disk that cannot hold activations and output, as far as that can be foreseen."""
    tokens = sum(map(len, job.samples)) if job.calibrated else 0
    # Two streams, of what enters a block, a part and the next block.
    needed = tokens * reader.config.hidden_size * 4 * 2 * 3
    # Scales and zero points take up to 5/8 of a bit at groups of 32 or more.
    bits = job.scheme.spec.bits + 1 if isinstance(job.scheme, WeightOnly) else 8
    # The finished blocks, and the files that they are joined into.
    needed += 2 * sum(math.prod(reader.shape(name)) * bits // 8
                      if in_blocks(reader.config, name) else reader.num_bytes(name)
                      for name in reader.names)
    place = next(path for path in job.out.absolute().parents if os.path.exists(path))
    # What an earlier run left is part of what this one needs.
    left = sum(file.stat().st_size for file in partial_path(job.out).glob('*') if file.is_file())
    free = shutil.disk_usage(place).free + left
    if free < needed:
        raise ConfigError(f'{place}: expected {needed / 2**20:.0f} MiB of free space, got '
                          f'{free / 2**20:.0f} MiB')


def settings(job: Job) -> dict[str, Any]:
    """Return all that decides a byte of the output."""
    samples = [sample.tolist() for sample in job.samples] if job.calibrated else []
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns)
             for file in sorted(job.source.glob('*.safetensors'))]
    scheme = asdict(job.scheme)
    if isinstance(job.scheme, WeightOnly):
        scheme = {**scheme['method'], **scheme['spec']}
    return {
        'scheme': type(job.scheme).__name__, **scheme, 'samples': len(samples),
        'tokens': sum(map(len, samples)), 'calibration': _digest(repr(samples).encode()),
        'search_samples': job.search_samples, 'device': str(job.device),
        'threads': torch.get_num_threads(), 'weights': _digest(repr(files).encode()),
        'config': _digest((job.source / 'config.json').read_bytes())}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
