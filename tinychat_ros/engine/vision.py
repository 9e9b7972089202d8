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
"""Images in prompts: which tokens stand for them, and what a model reads in their places."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import groupby
from typing import Callable, Mapping, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.engine.image import Image
from tinychat_ros.engine.image_processor import FittedImage, ImageProcessor
from tinychat_ros.engine.tokenizer import Tokenizer
from tinychat_ros.errors import ImageError, TokenizerError
from tinychat_ros.models.clip import VisionTower

# Images whose features are kept, for one whose prefill gave way or whose conversation returns.
_KEPT = 4


@dataclass(frozen=True)
class Prompt:
    """
    What an answer begins with.

    :param ids: of tokens, or negative where an image is, see Vision.
    :param images: by their keys.
    """

    ids: list[int]
    images: Mapping[int, FittedImage] = field(default_factory=dict)

    @property
    def text_ids(self) -> list[int]:
        """Return the ids of tokens alone."""
        return [i for i in self.ids if i >= 0]


class Vision:
    """
    Puts images into prompts.

    The places of an image are negative numbers made of its key and of each place's own number: a
    KV cache then holds the beginning of a prompt as far as the images are the same, too.
    """

    def __init__(self, tower: VisionTower, processor: ImageProcessor) -> None:
        self._tower = tower
        self._processor = processor
        self._token = tower.config.image_token_index
        self._places = tower.config.image_seq_length
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def fitted(self, image: Image) -> FittedImage:
        """Return what the model sees of an image; see ImageProcessor.fitted."""
        return self._processor.fitted(image)

    def prompt(self, token_ids: Sequence[int], images: Sequence[FittedImage]) -> Prompt:
        """
        Put an image wherever the tokens have one for it.

        :raises ImageError: there are more or fewer tokens for images than images.
        """
        if list(token_ids).count(self._token) != len(images):
            raise ImageError(f'image: expected a prompt with {len(images)} tokens for images, got '
                             f'{list(token_ids).count(self._token)}')
        keys = iter(image.key for image in images)
        ids = [i for token in token_ids
               for i in (self._ids(next(keys)) if token == self._token else [token])]
        return Prompt(ids, {image.key: image for image in images})

    def features(self, ids: Sequence[int], images: Mapping[int, FittedImage],
                 interrupted: Callable[[], bool]) -> Optional[Tensor]:
        """
        Return what stands in the places of images, [count, H]; None when it was interrupted.

        :param ids: a piece of a prompt; ``images`` are those of the whole.
        """
        rows = []
        for key, places in groupby((-1 - i for i in ids if i < 0), lambda p: p // self._places):
            features = self._look(images[key], interrupted)
            if features is None:
                return None
            rows.append(features[[place % self._places for place in places]])
        return torch.cat(rows)

    def _ids(self, key: int) -> list[int]:
        return [-1 - (key * self._places + place) for place in range(self._places)]

    def _look(self, image: FittedImage, interrupted: Callable[[], bool]) -> Optional[Tensor]:
        features = self._kept.pop(image.key, None)
        if features is None:
            pixel_values = self._processor.pixel_values(image)
            features = self._tower.features(pixel_values, interrupted)
        if features is not None:
            self._kept[image.key] = features
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return features


def image_token(tokenizer: Tokenizer, token_id: int) -> str:
    """
    Return how a template writes the token for an image.

    :raises TokenizerError: there is none.
    """
    for token in tokenizer.added_tokens:
        if tokenizer.token_id(token) == token_id:
            return token
    raise TokenizerError(f'tokenizer: expected a token {token_id} for images, as '
                         'image_token_index of config.json says, and there is none')
