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
"""Quantizes a checkpoint block by block, never holding more than a few of them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
import hashlib
import math
import os
from pathlib import Path
import resource
import shutil
import time
from typing import Any, Callable, Iterator, Optional, Sequence, Union

import torch
from torch import Tensor

from tinychat_ros.checkpoint import formats
from tinychat_ros.checkpoint.quantization_config import awq_config, w3_config, w8a8_config
from tinychat_ros.checkpoint.reader import CheckpointReader, read_json
from tinychat_ros.errors import CheckpointError, ConfigError, UnsupportedModelError
from tinychat_ros.kernels.linear import Linear, StoredWeight
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.llama import LlamaBlock
from tinychat_ros.quantization.block import BlockQuantizer, why_left
from tinychat_ros.quantization.method import Method
from tinychat_ros.quantization.progress import Progress
from tinychat_ros.quantization.recipes import recipe, Scratch
from tinychat_ros.quantization.report import LayerResult
from tinychat_ros.quantization.rtn import WeightSpec
from tinychat_ros.quantization.smoothquant import best_alpha, SmoothQuantizer, Survey, Surveyor
from tinychat_ros.quantization.streams import ORIGINAL, Streams, STREAMS
from tinychat_ros.quantization.work_folder import partial_path, WorkFolder

_BLOCKS = 'model.layers.'
_EMBEDDING = 'model.embed_tokens.weight'
_KEPT_SUFFIXES = ('.json', '.jinja', '.model', '.txt')
_KEPT_STEMS = ('LICENSE', 'LICENCE', 'NOTICE')
_CPU = torch.device('cpu')

Worker = Union[BlockQuantizer, Surveyor, SmoothQuantizer]


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


@dataclass(frozen=True)
class Outcome:
    """
    What a run did.

    :param blocks: how many blocks this run quantized; fewer than the model has after a resume.
    :param peak_memory_bytes: largest resident set of this process so far.
    """

    layers: list[LayerResult]
    blocks: int
    seconds: float
    peak_memory_bytes: int

    @property
    def blocks_per_minute(self) -> float:
        """Return how many blocks this run quantized in a minute."""
        return 60 * self.blocks / self.seconds


def quantize_checkpoint(job: Job, resume: bool = False) -> Outcome:
    """
    Quantize a checkpoint into a folder that appears when it is complete.

    :param resume: go on with the folder OUT.partial that a killed run left.
    :raises TinychatError: the source, the job or the output folder is not what it has to be.
    """
    begin = time.monotonic()
    with CheckpointReader(job.source) as reader:
        _check(job, reader)
    with closing(WorkFolder(job.out, _settings(job), resume)) as work, torch.inference_mode():
        run = _Run(job, work)
        blocks = run.weight_only() if isinstance(job.scheme, WeightOnly) else run.smoothquant()
        layers = [layer for index in range(run.model.num_hidden_layers)
                  for layer in work.results(index)]
        with CheckpointReader(job.source) as reader:
            others = _other_tensors(reader)
        work.finish(run.model.num_hidden_layers, others, _config(job, layers),
                    _extra_files(job.source))
    return Outcome(layers, blocks, time.monotonic() - begin,
                   resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class _Floats:
    """Plain weights in fp32, copied out of the mapped file; see models.layers.WeightSource."""

    def __init__(self, reader: CheckpointReader, device: torch.device) -> None:
        self._reader, self._device = reader, device

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a tensor in fp32."""
        tensor = _floats(self._reader, name, shape)
        return tensor.to(self._device, torch.float32, copy=True)

    def linears(self, names: Sequence[str], out_features: Sequence[int],
                in_features: int) -> tuple[Linear, ...]:
        """Return each linear on its own, since each is rounded on its own."""
        biases = [f'{name}.bias' for name in names]
        return tuple(Linear(self.tensor(f'{name}.weight', [n, in_features]),
                            self.tensor(bias, [n]) if bias in self._reader.names else None)
                     for name, bias, n in zip(names, biases, out_features))


class _Run:
    """The loops over the blocks."""

    def __init__(self, job: Job, work: WorkFolder) -> None:
        with CheckpointReader(job.source) as reader:
            self.model: ModelConfig = reader.config
        self._job, self._work = job, work
        _, self._parts = recipe(self.model.model_type)
        self._lengths = [len(sample) for sample in job.samples]
        self._scratch = Scratch(self.model, max(self._lengths, default=1), job.device)

    def weight_only(self) -> int:
        """Quantize the blocks that are not finished and return how many those were."""
        scheme = self._job.scheme
        queries = self.model.num_attention_heads // self.model.num_key_value_heads

        def worker(index: int, block: LlamaBlock) -> Worker:
            return BlockQuantizer(block, _prefix(index), scheme.spec, scheme.method,
                                  self._scratch, queries)
        streams = STREAMS[scheme.method.inputs] if scheme.method.calibrated else ()
        return self._walk('blocks', streams, self._unfinished(), worker, self._save)

    def smoothquant(self) -> int:
        """Survey the whole model, choose alpha, then quantize the blocks not yet finished."""
        total = self.model.num_hidden_layers
        surveys = self._work.load('survey')
        if surveys is None:
            surveys = []
            alpha = self._job.scheme.alpha
            self._walk('survey', (ORIGINAL,), range(total),
                       lambda index, block: Surveyor(block, self._scratch, alpha),
                       lambda index, worker: surveys.append(worker.as_json()))
            self._work.save('survey', surveys)
        found = [{part: Survey.from_json(value) for part, value in block.items()}
                 for block in surveys]
        alpha = self._job.scheme.alpha
        if alpha is None:
            alpha = best_alpha([survey for block in found for survey in block.values()])
        return self._walk('blocks', (), self._unfinished(),
                          lambda index, block: SmoothQuantizer(block, _prefix(index), alpha,
                                                               found[index]), self._save)

    def _unfinished(self) -> range:
        total = self.model.num_hidden_layers
        return range(next((i for i in range(total) if not self._work.has_block(i)), total), total)

    def _save(self, index: int, worker: Worker) -> None:
        self._work.save_block(index, worker.tensors, worker.results)

    def _walk(self, title: str, names: Sequence[str], blocks: range,
              make: Callable[[int, LlamaBlock], Worker],
              save: Callable[[int, Worker], None]) -> int:
        """Let a worker of its own treat each block; return how many blocks that were."""
        total = self.model.num_hidden_layers
        streams = Streams(self._work.path, names, self._lengths, self.model.hidden_size,
                          self._job.device)
        if blocks.start == 0:
            streams.begin(_place(0), self._embedded)
        steps = len(self._parts)
        layers = sum(len(part.first_names) + 1 for part in self._parts)
        with Progress(title, blocks.start, total, layers) as progress:
            for index in blocks:
                worker = make(index, block := self._load(index))
                streams.stand(_place(index))
                for step, part in enumerate(self._parts):
                    self._treat(worker, part, streams)
                    progress.add_layers(len(part.first_names) + 1)
                    if index + 1 < total or step + 1 < steps:
                        behind = f'part-{step}' if step + 1 < steps else _place(index + 1)
                        streams.advance(behind, partial(self._output, worker, block, part))
                save(index, worker)
                # Only now: until here a killed run needs what entered this block.
                for place in (_place(index), *(f'part-{step}' for step in range(steps - 1))):
                    streams.forget(place)
                progress.add_block()
        return len(blocks)

    def _treat(self, worker: Worker, part: Any, streams: Streams) -> None:
        if streams.empty:
            worker.quantize(part, None, None)
        else:
            worker.quantize(part, streams.pairs,
                            partial(streams.pairs, self._job.search_samples))

    def _output(self, worker: Worker, original: LlamaBlock, part: Any, stream: str,
                x: Tensor) -> Tensor:
        return part.output(original if stream == ORIGINAL else worker.current, x, self._scratch)

    def _load(self, index: int) -> LlamaBlock:
        with CheckpointReader(self._job.source) as reader:
            return _load_block(reader, index, self._job.device)

    def _embedded(self) -> Iterator[Tensor]:
        with CheckpointReader(self._job.source) as reader:
            table = reader.floats(_EMBEDDING, [self.model.vocab_size, self.model.hidden_size])
            for sample in self._job.samples:
                yield table[sample].float()


def _place(index: int) -> str:
    return f'block-{index:05}'


def _prefix(index: int) -> str:
    return f'{_BLOCKS}{index}.'


def _load_block(reader: CheckpointReader, index: int, device: torch.device) -> LlamaBlock:
    block, _ = recipe(reader.config.model_type)
    return block.load(reader.config, _Floats(reader, device), _prefix(index).rstrip('.'))


def _check(job: Job, reader: CheckpointReader) -> None:
    """Refuse a job that cannot be done, before any of it is."""
    recipe(reader.config.model_type)
    names = sorted(formats.layer_names(reader))
    for name in names:
        found = formats.detect(reader, name).name
        if found != 'plain':
            raise UnsupportedModelError(f'{reader.path}: expected plain weights, got {name} in '
                                        f'the format {found}: it is quantized already')
    if isinstance(job.scheme, WeightOnly):
        shapes = [reader.shape(f'{name}.weight') for name in names
                  if name.startswith(_BLOCKS)]
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
    # Each tensor is read once now, so that a bad one is not found after hours.
    for index in range(reader.config.num_hidden_layers):
        _load_block(reader, index, _CPU)
    _other_tensors(reader)


def _check_room(job: Job, reader: CheckpointReader) -> None:
    """Refuse a disk that cannot hold activations and output, as far as that can be foreseen."""
    tokens = sum(map(len, job.samples)) if job.calibrated else 0
    # Two streams, of what enters a block, a part and the next block.
    needed = tokens * reader.config.hidden_size * 4 * 2 * 3
    # Scales and zero points take up to 5/8 of a bit at groups of 32 or more.
    bits = job.scheme.spec.bits + 1 if isinstance(job.scheme, WeightOnly) else 8
    # The finished blocks, and the files that they are joined into.
    needed += 2 * sum(math.prod(reader.shape(name)) * bits // 8 if name.startswith(_BLOCKS)
                      else reader.num_bytes(name) for name in reader.names)
    place = next(path for path in job.out.absolute().parents if os.path.exists(path))
    # What an earlier run left is part of what this one needs.
    left = sum(file.stat().st_size for file in partial_path(job.out).glob('*') if file.is_file())
    free = shutil.disk_usage(place).free + left
    if free < needed:
        raise ConfigError(f'{place}: expected {needed / 2**20:.0f} MiB of free space, got '
                          f'{free / 2**20:.0f} MiB')


def _settings(job: Job) -> dict[str, Any]:
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


def _other_tensors(reader: CheckpointReader) -> dict[str, StoredWeight]:
    """Return what lies outside the blocks; what the model reads of it in fp16."""
    model = reader.config
    table = [model.vocab_size, model.hidden_size]
    read = {_EMBEDDING: table, 'model.norm.weight': [model.hidden_size]}
    if not model.tie_word_embeddings:
        read['lm_head.weight'] = table
    others = {name: reader.stored(name) for name in sorted(reader.names)
              if not name.startswith(_BLOCKS)}
    for name, shape in read.items():
        others[name] = _floats(reader, name, shape).half()
    return others


def _floats(reader: CheckpointReader, name: str, shape: Sequence[int]) -> Tensor:
    """Return a tensor as stored; the output could not hold values beyond the range of fp16."""
    tensor = reader.floats(name, shape)
    if not torch.isfinite(tensor.half()).all():
        raise CheckpointError(f'{name}: expected values that fp16 holds, got larger ones')
    return tensor


def _config(job: Job, layers: Sequence[LayerResult]) -> dict[str, Any]:
    """Return config.json of the output."""
    config = read_json(job.source / 'config.json')
    # transformers 5 writes `dtype`, older ones and this project's readers know `torch_dtype`.
    config.pop('dtype', None)
    left = [layer.name for layer in layers if layer.bits == 16]
    if isinstance(job.scheme, SmoothQuant):
        quantization = w8a8_config(left)
    else:
        describe = awq_config if job.scheme.spec.bits == 4 else w3_config
        quantization = describe(job.scheme.spec.group_size, left)
    return {**config, 'torch_dtype': 'float16', 'quantization_config': quantization}


def _extra_files(source: Path) -> list[Path]:
    """List the tokenizer's, the generation's and the licence's files."""
    return [file for file in sorted(source.iterdir())
            if file.is_file() and not file.name.startswith('.')
            and (file.suffix in _KEPT_SUFFIXES or file.stem.upper() in _KEPT_STEMS)
            and file.name != 'config.json' and not file.name.endswith('.index.json')]
