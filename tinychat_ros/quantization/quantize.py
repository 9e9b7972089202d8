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
from dataclasses import dataclass
from functools import partial
import resource
import time
from typing import Any, Callable, Iterator, Sequence, Union

import torch
from torch import Tensor

from tinychat_ros.checkpoint.quantization_config import awq_config, w3_config, w8a8_config
from tinychat_ros.checkpoint.reader import CheckpointReader, read_json
from tinychat_ros.kernels import ops
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.block import Block
from tinychat_ros.quantization.block import BlockQuantizer
from tinychat_ros.quantization.job import check, Job, settings, SmoothQuant, WeightOnly
from tinychat_ros.quantization.progress import Progress
from tinychat_ros.quantization.recipes import output, recipe, Scratch, Step
from tinychat_ros.quantization.report import LayerResult
from tinychat_ros.quantization.smoothquant import best_alpha, SmoothQuantizer, Survey, Surveyor
from tinychat_ros.quantization.source import (
    block_prefix, extra_files, in_stored_order, kept_tensors, load_block, other_tensors,
    plain_towers)
from tinychat_ros.quantization.streams import ORIGINAL, Streams, STREAMS
from tinychat_ros.quantization.work_folder import WorkFolder

Worker = Union[BlockQuantizer, Surveyor, SmoothQuantizer]


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
    check(job)
    with closing(WorkFolder(job.out, settings(job), resume)) as work, torch.inference_mode():
        run = _Run(job, work)
        blocks = run.weight_only() if isinstance(job.scheme, WeightOnly) else run.smoothquant()
        layers = [layer for index in range(run.model.num_hidden_layers)
                  for layer in work.results(index)]
        with CheckpointReader(job.source) as reader:
            others = other_tensors(reader)
        work.finish(run.model.num_hidden_layers, others, _config(job, layers),
                    extra_files(job.source))
    return Outcome(layers, blocks, time.monotonic() - begin,
                   resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class _Run:
    """The loops over the blocks."""

    def __init__(self, job: Job, work: WorkFolder) -> None:
        with CheckpointReader(job.source) as reader:
            self.model: ModelConfig = reader.config
        self._job, self._work = job, work
        self._steps = recipe(self.model)
        self._lengths = [len(sample) for sample in job.samples]
        self._scratch = Scratch(self.model, max(self._lengths, default=1), job.device)

    def weight_only(self) -> int:
        """Quantize the blocks that are not finished and return how many those were."""
        scheme = self._job.scheme

        def worker(index: int, block: Block) -> Worker:
            return BlockQuantizer(block, block_prefix(self.model, index), scheme.spec,
                                  scheme.method, self._scratch)
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
        found = [{norm: Survey.from_json(value) for norm, value in block.items()}
                 for block in surveys]
        alpha = self._job.scheme.alpha
        if alpha is None:
            alpha = best_alpha([survey for block in found for survey in block.values()])
        return self._walk('blocks', (), self._unfinished(),
                          lambda index, block: SmoothQuantizer(
                              block, block_prefix(self.model, index), alpha, found[index]),
                          self._save)

    def _unfinished(self) -> range:
        total = self.model.num_hidden_layers
        return range(next((i for i in range(total) if not self._work.has_block(i)), total), total)

    def _save(self, index: int, worker: Worker) -> None:
        with CheckpointReader(self._job.source) as reader:
            kept = kept_tensors(reader, index)
        tensors = in_stored_order(self.model, {**kept, **worker.tensors})
        self._work.save_block(index, tensors, worker.results)

    def _walk(self, title: str, names: Sequence[str], blocks: range,
              make: Callable[[int, Block], Worker],
              save: Callable[[int, Worker], None]) -> int:
        """Let a worker of its own treat each block; return how many blocks that were."""
        total = self.model.num_hidden_layers
        streams = Streams(self._work.path, names, self._lengths, self.model.hidden_size,
                          self._job.device)
        if blocks.start == 0:
            streams.begin(_place(0), self._embedded)
        layers = sum(map(_layers, self._steps))
        with Progress(title, blocks.start, total, layers) as progress:
            for index in blocks:
                block = load_block(self._job.source, index, self._job.device,
                                   self._scratch.positions)
                worker = make(index, block)
                # The places that are behind once the block is saved; until then a killed run
                # needs what entered the block.
                places = [_place(index), *(f'part-{i}' for i in range(1, len(self._steps)))]
                for step, place, behind in zip(self._steps, places,
                                               [*places[1:], _place(index + 1)]):
                    self._treat(worker, step, streams, place)
                    if behind != _place(total):
                        streams.advance(place, behind, partial(self._output, worker, block, step))
                    progress.add_layers(_layers(step))
                save(index, worker)
                for place in places:
                    streams.forget(place)
                progress.add_block()
        return len(blocks)

    def _treat(self, worker: Worker, step: Step, streams: Streams, place: str) -> None:
        if streams.empty:
            worker.quantize(step, None, None)
        else:
            worker.quantize(step, partial(streams.pairs, place),
                            partial(streams.pairs, place, self._job.search_samples))

    def _output(self, worker: Worker, original: Block, step: Step, stream: str,
                x: Tensor) -> Tensor:
        block = original if stream == ORIGINAL else worker.current
        return output(step, block, x, self._scratch)

    def _embedded(self) -> Iterator[Tensor]:
        with CheckpointReader(self._job.source) as reader:
            table = reader.floats(f'{self.model.names.embedding}.weight',
                                  [self.model.vocab_size, self.model.hidden_size])
            for sample in self._job.samples:
                yield ops.embedding(sample, table, torch.float32, self.model.embedding_scale)


def _layers(step: Step) -> int:
    return sum(len(part.first_names) + 1 for part in step)


def _place(index: int) -> str:
    return f'block-{index:05}'


def _config(job: Job, layers: Sequence[LayerResult]) -> dict[str, Any]:
    """Return config.json of the output."""
    config = read_json(job.source / 'config.json')
    # transformers 5 writes `dtype`, older ones and this project's readers know `torch_dtype`.
    config.pop('dtype', None)
    left = [layer.name for layer in layers if layer.bits == 16] + plain_towers(job.source)
    if isinstance(job.scheme, SmoothQuant):
        quantization = w8a8_config(left)
    else:
        describe = awq_config if job.scheme.spec.bits == 4 else w3_config
        quantization = describe(job.scheme.spec.group_size, left)
    return {**config, 'torch_dtype': 'float16', 'quantization_config': quantization}
