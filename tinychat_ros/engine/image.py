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
"""An image as a model is shown it, and JPEG and PNG files to such images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
import hashlib
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinychat_ros.errors import ImageCorruptError, ImageError, ImageUnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

MAX_FILE_BYTES = 32 * 2**20
# Width times height, read before anything is decoded: a small file may claim to be of any size.
MAX_PIXELS = 4096 * 4096

_WITH_ALPHA = ('LA', 'La', 'PA', 'RGBA', 'RGBa')
_WITH_16_BITS = ('I', 'I;16', 'I;16B', 'I;16L')


@dataclass(frozen=True, eq=False)
class Image:
    """
    An image.

    :param pixels: uint8 [height, width, 3], red, green and blue.
    :raises ImageUnsupportedError: the pixels are something else, or too many.
    """

    pixels: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) != 3 or shape[2] != 3:
            raise ImageUnsupportedError('image: expected pixels of uint8 [height, width, 3], got '
                                        f'{self.pixels.dtype} {list(shape)}')
        check_size(shape[1], shape[0])

    @cached_property
    def key(self) -> int:
        """Return a hash of size and pixels: equal images have equal keys, of 63 bits."""
        digest = hashlib.blake2b(str(self.pixels.shape).encode(), digest_size=8)
        digest.update(self.pixels.contiguous().cpu().numpy())
        return int.from_bytes(digest.digest(), 'little') >> 1


def check_size(width: int, height: int) -> None:
    """
    Check the size of an image in pixels.

    :raises ImageCorruptError: there are no pixels.
    :raises ImageUnsupportedError: there are too many.
    """
    if not width or not height:
        raise ImageCorruptError(f'image: expected one pixel or more, got {width} x {height}')
    if width * height > MAX_PIXELS:
        raise ImageUnsupportedError(
            f'image: expected at most {MAX_PIXELS} pixels, got {width} x {height}')


def decode_image(data: bytes) -> Image:
    """
    Decode a JPEG or PNG file.

    It is turned upright as its EXIF orientation says, transparent parts become white, and 16 bits
    become 8.

    :raises ImageCorruptError: the file is cut short or damaged.
    :raises ImageUnsupportedError: it is too large, or of another format.
    """
    from PIL import ImageOps
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    if len(data) > MAX_FILE_BYTES:
        raise ImageUnsupportedError(
            f'image: expected at most {MAX_FILE_BYTES} bytes, got {len(data)}')
    begins = {b'\xff\xd8\xff': JpegImageFile, b'\x89PNG\r\n\x1a\n': PngImageFile}
    file_type = next((t for begin, t in begins.items() if data.startswith(begin)), None)
    if file_type is None:
        raise ImageUnsupportedError(
            f'image: expected a JPEG or PNG file, got {len(data)} bytes that begin {data[:8]!r}')
    try:
        file = file_type(BytesIO(data))
        check_size(*file.size)
        rgb = _rgb(ImageOps.exif_transpose(file))
    except (ImageError, MemoryError):
        raise
    # Pillow raises half a dozen kinds of exceptions, as the damage goes.
    except Exception as error:
        raise ImageCorruptError(
            f'image: expected a whole {file_type.format} file, got {len(data)} bytes that do not '
            f'decode ({error})') from error
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return Image(pixels.view(rgb.height, rgb.width, 3))


def _rgb(image: PillowImage) -> PillowImage:
    from PIL import Image as pillow

    if image.mode in _WITH_16_BITS:
        image = image.convert('I').point(lambda value: value / 256).convert('L')
    if image.mode in _WITH_ALPHA or 'transparency' in image.info:
        page = pillow.new('RGBA', image.size, 'white')
        image = pillow.alpha_composite(page, image.convert('RGBA'))
    return image.convert('RGB')
