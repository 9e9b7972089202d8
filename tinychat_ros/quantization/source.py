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
from typing import Mapping, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels.linear import Linear, reordered, StoredWeight
from tinychat_ros.kernels.packing import TileOrder
from tinychat_ros.models.block import Block, Positions
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.layers import qkv_rows

_KEPT_SUFFIXES = ('.json', '.jinja', '.model', '.txt')
_KEPT_STEMS = ('LICENSE', 'LICENCE', 'NOTICE')


def block_prefix(config: ModelConfig, index: int) -> str:
    """Return what the names of a block's tensors begin with."""
    return f'{config.names.blocks}.{index}.'


def in_blocks(config: ModelConfig, name: str) -> bool:
    """Say whether a tensor belongs to a block."""
    return name.startswith(f'{config.names.blocks}.')


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


def kept_tensors(reader: CheckpointReader, index: int) -> dict[str, StoredWeight]:
    """Return in fp16 what a block has beside linears and the norms in front of them."""
    names = reader.config.names
    norms = (names.q_norm, names.k_norm, names.attention_post_norm, names.mlp_post_norm)
    kept = [*(f'{norm}.weight' for norm in norms if norm), names.mlp_scales]
    full = (f'{block_prefix(reader.config, index)}{name}' for name in kept)
    return {name: reader.stored(name).half() for name in full if name in reader.names}


def in_stored_order(config: ModelConfig,
                    tensors: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    """Return a block's tensors, rows of queries, keys and values where the source has them."""
    rows = qkv_rows(config.num_attention_heads, config.num_key_value_heads, config.head_dim,
                    config.rotary_dim, config.qkv_grouped)
    if rows is None:
        return dict(tensors)
    back = torch.argsort(rows)
    return {name: reordered(value, back) if config.names.qkv[0] in name else value
            for name, value in tensors.items()}


def other_tensors(reader: CheckpointReader) -> dict[str, StoredWeight]:
    """Return what lies outside the blocks; what the model reads of it in fp16."""
    model, names = reader.config, reader.config.names
    table = [model.vocab_size, model.hidden_size]
    read = {f'{names.embedding}.weight': table, f'{names.norm}.weight': [model.hidden_size]}
    if model.layer_norm and (bias := f'{names.norm}.bias') in reader.names:
        read[bias] = [model.hidden_size]
    if not model.tie_word_embeddings:
        read[f'{names.lm_head}.weight'] = table
    others = {name: reader.stored(name) for name in sorted(reader.names)
              if not in_blocks(model, name)}
    if model.vision is not None:
        towers = (f'{model.vision.tower}.', f'{model.vision.projector}.')
        # Old towers number their positions in a tensor of integers.
        read |= {name: list(tensor.shape) for name, tensor in others.items()
                 if name.startswith(towers) and tensor.is_floating_point()}
    for name, shape in read.items():
        others[name] = _floats(reader, name, shape).half()
    return others


def plain_towers(source: Path) -> list[str]:
    """Return the modules outside of the blocks that stay plain in a model that sees."""
    with CheckpointReader(source) as reader:
        vision = reader.config.vision
    if vision is None:
        return []
    towers = [name.removeprefix('model.') for name in (vision.tower, vision.projector)]
    # In memory, transformers 5 has them one level deeper than the files.
    return [*towers, *(f'model.{name}' for name in towers)]


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
        def bias(name: str, n: int) -> Optional[Tensor]:
            found = self.optional(f'{name}.bias', [n])
            return None if found is None else reordered(found, rows)

        return tuple(Linear(reordered(self.tensor(f'{name}.weight', [n, in_features]), rows),
                            bias(name, n)) for name, n in zip(names, out_features))
