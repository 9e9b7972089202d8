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
"""One decoder block of random weights and the inputs that it is quantized on."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence

from tiny_models import llama_config, llama_tensors
import torch
from torch import Tensor

from tinychat_ros.kernels.linear import Linear
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.block import Block
from tinychat_ros.quantization.block import Inputs
from tinychat_ros.quantization.recipes import output, Part, recipe, Scratch

TOKENS = 48
PREFIX = 'model.layers.0.'


class _Tensors:
    """A WeightSource over a dictionary that keeps each linear on its own."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        assert list(self._tensors[name].shape) == list(shape)
        return self._tensors[name].float()

    def optional(self, name: str, shape: Sequence[int]) -> Optional[Tensor]:
        return self.tensor(name, shape) if name in self._tensors else None

    def linears(self, names: Sequence[str], out_features: Sequence[int], in_features: int,
                order: Any = None, rows: Optional[Tensor] = None) -> tuple[Linear, ...]:
        return tuple(Linear(self.tensor(f'{name}.weight', [n, in_features]),
                            self.optional(f'{name}.bias', [n]))
                     for name, n in zip(names, out_features))


def tiny_block(**changes: Any) -> tuple[Block, ModelConfig, Scratch]:
    """Return a block whose weights fp16 holds exactly, its config and room for TOKENS."""
    config = llama_config(num_hidden_layers=1, **changes)
    parsed = ModelConfig.from_dict(config)
    scratch = Scratch(parsed, TOKENS, torch.device('cpu'))
    return (block_of(llama_tensors(config, dtype=torch.float16), parsed, scratch), parsed, scratch)


def block_of(tensors: Mapping[str, Tensor], config: ModelConfig, scratch: Scratch) -> Block:
    """Return the block that tensors of these names make."""
    return Block.load(config, _Tensors(tensors), 0, scratch.positions)


def sequences(hidden: int, outliers: float = 1.0, count: int = 3, seed: int = 1) -> list[Tensor]:
    """Return inputs [TOKENS, hidden] with 3 channels that are larger by a factor."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(hidden, hidden, generator=generator) / hidden ** 0.5
    mix[:, [3, 17, 40]] *= outliers
    return [torch.randn(TOKENS, hidden, generator=generator) @ mix for _ in range(count)]


def parts_of(config: ModelConfig) -> list[Part]:
    """Return the parts of a block, in order."""
    return [part for step in recipe(config) for part in step]


def walk(worker: Any, block: Block, config: ModelConfig, scratch: Scratch,
         originals: Sequence[Tensor], entering: Optional[Sequence[Tensor]] = None) -> None:
    """Quantize the steps of a block, each behind the other, as a run over a model does."""
    x0, x = list(originals), list(originals if entering is None else entering)
    for step in recipe(config):
        worker.quantize(step, pairs(x, x0), pairs(x[:2], x0[:2]))
        x = [output(step, worker.current, one, scratch) for one in x]
        x0 = [output(step, block, one, scratch) for one in x0]


def pairs(x: Sequence[Tensor], x0: Sequence[Tensor]) -> Inputs:
    """Return what yields each sequence as it will be and as it was."""
    return lambda: zip(x, x0)


def run_block(block: Block, scratch: Scratch, xs: Sequence[Tensor]) -> Tensor:
    """Return the outputs of all sequences, one below the other."""
    return torch.cat([block.forward(x, scratch.cache, 0) for x in xs])
