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
"""The vision transformer of CLIP, and the projector that makes its patches tokens of a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from tinychat_ros.models.layers import WeightSource


@dataclass(frozen=True)
class VisionConfig:
    """
    A tower's shape, with Hugging Face's field names.

    :param num_hidden_layers: those that run, up to the one whose output is projected.
    :param keeps_class_token: the token in front of the patches is projected, too.
    :param image_token_index: the token that a prompt has for an image.
    :param tower: where a checkpoint keeps the transformer, and ``projector`` the projector.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    keeps_class_token: bool
    image_token_index: int
    tower: str = 'vision_tower.vision_model'
    projector: str = 'multi_modal_projector'

    @property
    def num_positions(self) -> int:
        """Return the number of patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def image_seq_length(self) -> int:
        """Return how many tokens of a prompt an image takes."""
        return self.num_positions - (not self.keeps_class_token)


class VisionTower:
    """
    A transformer (Radford et al., CLIP, 2021) and its projector (Liu et al., LLaVA-1.5, 2023).

    It runs once per image, in the ops of torch.

    :param out_features: H of the decoder.
    """

    def __init__(self, config: VisionConfig, weights: WeightSource, out_features: int) -> None:
        self.config = config
        hidden, embeddings = config.hidden_size, f'{config.tower}.embeddings'
        patch = [hidden, 3, config.patch_size, config.patch_size]
        self._class = weights.tensor(f'{embeddings}.class_embedding', [hidden])
        self._patches = weights.tensor(f'{embeddings}.patch_embedding.weight', patch)
        self._positions = weights.tensor(f'{embeddings}.position_embedding.weight',
                                         [config.num_positions, hidden])
        # Misspelt so in every checkpoint.
        self._norm = _norm(config, weights, f'{config.tower}.pre_layrnorm')
        self._layers = [_Layer(config, weights, f'{config.tower}.encoder.layers.{i}')
                        for i in range(config.num_hidden_layers)]
        self._projector = [
            _Dense(weights, f'{config.projector}.linear_1', out_features, hidden),
            _Dense(weights, f'{config.projector}.linear_2', out_features, out_features)]

    @torch.inference_mode()
    def features(self, pixel_values: Tensor,
                 interrupted: Callable[[], bool] = lambda: False) -> Optional[Tensor]:
        """
        Return what stands in the places of an image's tokens.

        :param pixel_values: normalized, [3, image_size, image_size].
        :param interrupted: asked before every layer.
        :returns: [image_seq_length, H]; None when it was interrupted.
        """
        pixels = pixel_values.to(self._patches)
        patches = F.conv2d(pixels[None], self._patches, stride=self.config.patch_size)
        x = torch.cat([self._class[None], patches[0].flatten(1).T])
        x = self._norm(x + self._positions)
        for layer in self._layers:
            if interrupted():
                return None
            x = layer.forward(x)
        first, second = self._projector
        return second(F.gelu(first(x if self.config.keeps_class_token else x[1:])))


class _Dense:
    """A linear; on the CPU, a weight of 16 bits stays so, and is widened as it is read."""

    def __init__(self, weights: WeightSource, name: str, n: int, k: int) -> None:
        self._weight = weights.tensor(f'{name}.weight', [n, k])
        self._bias = weights.optional(f'{name}.bias', [n])

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight.to(x.dtype), self._bias)


def _norm(config: VisionConfig, weights: WeightSource, name: str) -> Callable[[Tensor], Tensor]:
    shape = [config.hidden_size]
    weight, bias = (weights.tensor(f'{name}.{each}', shape) for each in ('weight', 'bias'))
    return partial(F.layer_norm, normalized_shape=shape, weight=weight, bias=bias,
                   eps=config.layer_norm_eps)


class _Layer:
    """Attention over all patches and an MLP, each behind a norm."""

    def __init__(self, config: VisionConfig, weights: WeightSource, prefix: str) -> None:
        hidden, inter = config.hidden_size, config.intermediate_size
        self._heads = config.num_attention_heads
        self._attention_norm = _norm(config, weights, f'{prefix}.layer_norm1')
        self._q, self._k, self._v, self._out = (
            _Dense(weights, f'{prefix}.self_attn.{name}', hidden, hidden)
            for name in ('q_proj', 'k_proj', 'v_proj', 'out_proj'))
        self._mlp_norm = _norm(config, weights, f'{prefix}.layer_norm2')
        self._up = _Dense(weights, f'{prefix}.mlp.fc1', inter, hidden)
        self._down = _Dense(weights, f'{prefix}.mlp.fc2', hidden, inter)

    def forward(self, x: Tensor) -> Tensor:
        """Run x [T, C]."""
        y = self._attention_norm(x)
        q, k, v = (linear(y).unflatten(1, (self._heads, -1)).transpose(0, 1)
                   for linear in (self._q, self._k, self._v))
        # A batch of one, since some kernels of torch take no less than four dimensions.
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        x = x + self._out(attended.transpose(0, 1).flatten(1))
        y = self._up(self._mlp_norm(x))
        # quick_gelu
        return x + self._down(y * torch.sigmoid(1.702 * y))
