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
"""Makes what a vision tower reads of images, as the checkpoint's processor file says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinychat_ros.checkpoint.reader import read_json
from tinychat_ros.engine.image import check_size, Image
from tinychat_ros.errors import CheckpointError

# As Pillow counts.
_BICUBIC = 3
# What CLIP's processor does where its file does not say, and all that is built.
_STEPS = {'do_pad': False, 'do_resize': True, 'resample': _BICUBIC, 'do_center_crop': True,
          'do_rescale': True, 'do_normalize': True}
_NUMBERS = {'rescale_factor': 1 / 255, 'image_mean': [0.48145466, 0.4578275, 0.40821073],
            'image_std': [0.26862954, 0.26130258, 0.27577711]}


class FittedImage(Image):
    """What a model sees of an image, resized and cropped."""


@dataclass(frozen=True)
class ImageProcessor:
    """
    Resizes, crops and normalizes as CLIPImageProcessor of transformers does by Pillow.

    :param size: (height, width) to resize to, or (shortest edge,), which keeps the proportions.
    :param crop: height and width of what is cut out of the middle.
    :param mean: of red, green and blue, fp32 [3], and so is ``std``.
    """

    size: tuple[int, ...]
    crop: int
    rescale_factor: float
    mean: Tensor
    std: Tensor

    @classmethod
    def load(cls, path: Path, image_size: int) -> ImageProcessor:
        """
        Read preprocessor_config.json of a checkpoint folder, or its part of processor_config.json.

        :param image_size: height and width of what the tower takes.
        :raises CheckpointError: neither is there, or what they say is not built.
        """
        file = path / 'preprocessor_config.json'
        if not file.exists():
            file = path / 'processor_config.json'
        content = read_json(file)
        given = content.get('image_processor', content)
        # Some versions of transformers write null for what is as usual.
        config = {**_STEPS, **_NUMBERS, **{k: v for k, v in given.items() if v is not None}}
        for key, built in _STEPS.items():
            if config[key] != built:
                raise CheckpointError(f'{file}: {key}: expected {built!r}, got {config[key]!r}')
        size, crop = (_size(config.get(key)) for key in ('size', 'crop_size'))
        if not size or crop not in ((image_size,), (image_size, image_size)):
            raise CheckpointError(
                f'{file}: expected a size, and a crop_size of {image_size} as config.json has it, '
                f"got {config.get('size')!r} and {config.get('crop_size')!r}")
        try:
            factor, mean, std = (torch.tensor(config[key], dtype=torch.float32)
                                 for key in _NUMBERS)
            return cls(size, image_size, factor.item(), mean.expand(3), std.expand(3))
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{file}: {', '.join(_NUMBERS)}: expected numbers, got: {error}") from None

    def fitted(self, image: Image) -> FittedImage:
        """
        Return what a model sees of an image, [crop, crop, 3].

        :raises ImageUnsupportedError: it would be huge when it is resized, as a strip would.
        """
        from PIL import Image as pillow

        if isinstance(image, FittedImage):
            return image
        width, height = self._resized(*image.pixels.shape[:2])
        check_size(width, height)
        page = pillow.fromarray(image.pixels.numpy()).resize((width, height), _BICUBIC)
        left, top = (width - self.crop) // 2, (height - self.crop) // 2
        page = page.crop((left, top, left + self.crop, top + self.crop))
        pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8)
        return FittedImage(pixels.view(self.crop, self.crop, 3))

    def pixel_values(self, image: FittedImage) -> Tensor:
        """Return normalized pixels, fp32 [3, crop, crop]."""
        scaled = image.pixels.to(torch.float32) * self.rescale_factor
        return ((scaled - self.mean) / self.std).permute(2, 0, 1)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return width and height."""
        if len(self.size) == 2:
            return self.size[1], self.size[0]
        short = min(height, width)
        return self.size[0] * width // short, self.size[0] * height // short


def _size(value: Any) -> tuple[int, ...]:
    """Return (height, width), (edge,), or () where it is neither."""
    if isinstance(value, dict):
        names = ('shortest_edge',) if 'shortest_edge' in value else ('height', 'width')
        numbers = tuple(value.get(name) for name in names)
    else:
        numbers = (value,)
    return numbers if all(isinstance(n, int) and n > 0 for n in numbers) else ()
