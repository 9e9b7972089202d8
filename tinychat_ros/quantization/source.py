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
"""What is read from the checkpoint that is quantized: its blocks, and what lies around them."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels.linear import Linear, StoredWeight
from tinychat_ros.kernels.packing import TileOrder
from tinychat_ros.models.block import Block, Positions

BLOCKS = 'model.layers.'
EMBEDDING = 'model.embed_tokens.weight'
_KEPT_SUFFIXES = ('.json', '.jinja', '.model', '.txt')
_KEPT_STEMS = ('LICENSE', 'LICENCE', 'NOTICE')


def block_prefix(index: int) -> str:
    """Return what the names of a block's tensors begin with."""
    return f'{BLOCKS}{index}.'


def load_block(source: Path, index: int, device: torch.device,
               positions: Positions = Positions()) -> Block:
    """
    Return a block in fp32, each linear on its own, since each is rounded on its own.

    The file is mapped for this block alone: the pages read count as memory of the process.

    :param positions: what the block needs to run.
    :raises CheckpointError: a tensor is missing or cannot be right.
    """
    with CheckpointReader(source) as reader:
        return Block.load(reader.config, _Floats(reader, device), index, positions)


def other_tensors(reader: CheckpointReader) -> dict[str, StoredWeight]:
    """Return what lies outside the blocks; what the model reads of it in fp16."""
    model = reader.config
    table = [model.vocab_size, model.hidden_size]
    read = {EMBEDDING: table, 'model.norm.weight': [model.hidden_size]}
    if not model.tie_word_embeddings:
        read['lm_head.weight'] = table
    others = {name: reader.stored(name) for name in sorted(reader.names)
              if not name.startswith(BLOCKS)}
    for name, shape in read.items():
        others[name] = _floats(reader, name, shape).half()
    return others


def _floats(reader: CheckpointReader, name: str, shape: Sequence[int]) -> Tensor:
    """Return a tensor as stored; the output could not hold values beyond the range of fp16."""
    tensor = reader.floats(name, shape)
    if not torch.isfinite(tensor.half()).all():
        raise CheckpointError(f'{name}: expected values that fp16 holds, got larger ones')
    return tensor


def extra_files(source: Path) -> list[Path]:
    """List the tokenizer's, the generation's and the licence's files."""
    return [file for file in sorted(source.iterdir())
            if file.is_file() and not file.name.startswith('.')
            and (file.suffix in _KEPT_SUFFIXES or file.stem.upper() in _KEPT_STEMS)
            and file.name != 'config.json' and not file.name.endswith('.index.json')]


class _Floats:
    """Plain weights in fp32, copied out of the mapped file; see models.layers.WeightSource."""

    def __init__(self, reader: CheckpointReader, device: torch.device) -> None:
        self._reader, self._device = reader, device

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a tensor in fp32."""
        tensor = _floats(self._reader, name, shape)
        return tensor.to(self._device, torch.float32, copy=True)

    def optional(self, name: str, shape: Sequence[int]) -> Optional[Tensor]:
        """Return a tensor in fp32, or None where there is none."""
        return self.tensor(name, shape) if name in self._reader.names else None

    def linears(self, names: Sequence[str], out_features: Sequence[int], in_features: int,
                order: Optional[TileOrder] = None,
                rows: Optional[Tensor] = None) -> tuple[Linear, ...]:
        """Return each linear on its own."""
        return tuple(Linear(self.tensor(f'{name}.weight', [n, in_features]),
                            self.optional(f'{name}.bias', [n]))
                     for name, n in zip(names, out_features))
