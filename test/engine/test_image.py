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
"""Files become the pixels that people see in them, or are refused by name."""

from io import BytesIO
import random
import struct
import zlib

from PIL import Image as pillow
import pytest
import torch

from tinychat_ros.engine import image as engine_image
from tinychat_ros.engine.image import decode_image, Image
from tinychat_ros.engine.request import Request
from tinychat_ros.errors import ImageCorruptError, ImageUnsupportedError, ModelCannotSeeError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(picture, kind, **options):
    """Return a picture of Pillow as the bytes of a file."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(width=40, height=30):
    """Return pixels that look like nothing, uint8 [height, width, 3]."""
    return torch.randint(256, (height, width, 3), dtype=torch.uint8)


def picture_of(pixels):
    """Return pixels as a picture of Pillow."""
    height, width, _ = pixels.shape
    return pillow.frombytes('RGB', (width, height), pixels.numpy().tobytes())


def png(width, height, bits, color_type, rows):
    """Return a PNG file by hand, of whatever size it claims."""
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack(
            '>I', zlib.crc32(name + body))

    header = struct.pack('>IIBBBBB', width, height, bits, color_type, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
            + chunk(b'IEND', b''))


def test_a_png_comes_back_pixel_by_pixel():
    pixels = noise()
    assert torch.equal(decode_image(encoded(picture_of(pixels), 'PNG')).pixels, pixels)


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'subsampling': 0}])
def test_a_jpeg_comes_back_nearly(options):
    across = torch.linspace(0, 255, 64)
    pixels = torch.stack([across.expand(48, 64), across.flip(0).expand(48, 64),
                          torch.full((48, 64), 90.0)], dim=2).to(torch.uint8)
    decoded = decode_image(encoded(picture_of(pixels), 'JPEG', quality=95, **options)).pixels
    assert decoded.shape == (48, 64, 3) and decoded.dtype == torch.uint8
    assert (decoded.int() - pixels.int()).abs().max() < 12


@pytest.mark.parametrize('mode, color, kind, seen', [
    ('1', 1, 'PNG', WHITE), ('L', 77, 'PNG', (77, 77, 77)), ('L', 77, 'JPEG', (77, 77, 77)),
    ('P', RED, 'PNG', RED), ('I;16', 300 * 256 // 2, 'PNG', (150, 150, 150)),
    ('RGBA', (*RED, 255), 'PNG', RED), ('RGBA', (*RED, 0), 'PNG', WHITE),
    ('RGBA', (*RED, 128), 'PNG', (255, 127, 127)), ('LA', (40, 0), 'PNG', WHITE),
    ('CMYK', (0, 255, 255, 0), 'JPEG', (254, 0, 0))])
def test_every_kind_of_color_becomes_red_green_and_blue(mode, color, kind, seen):
    pixels = decode_image(encoded(pillow.new(mode, (16, 8), color), kind)).pixels
    assert pixels.shape == (8, 16, 3)
    assert (pixels.int() - torch.tensor(seen)).abs().max() <= 1


def test_a_color_that_a_palette_calls_transparent_becomes_white():
    picture = pillow.new('P', (4, 4), RED)
    assert decode_image(encoded(picture, 'PNG', transparency=0)).pixels.unique().tolist() == [255]


@pytest.mark.parametrize('color_type, row, seen', [
    (2, (65535, 32768, 256), (255, 128, 1)), (6, (65535, 32768, 256, 0), WHITE),
    (4, (512, 65535), (2, 2, 2))])
def test_16_bits_become_8(color_type, row, seen):
    rows = b'\0' + struct.pack(f'>{len(row)}H', *row)
    assert decode_image(png(1, 1, 16, color_type, rows)).pixels.flatten().tolist() == list(seen)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('orientation, upright', [
    (1, lambda p: p), (2, lambda p: p.flip(1)), (3, lambda p: p.flip(0, 1)),
    (6, lambda p: p.transpose(0, 1).flip(1)), (8, lambda p: p.transpose(0, 1).flip(0))])
def test_a_camera_that_was_held_askew_is_turned_upright(kind, orientation, upright):
    picture = picture_of(noise(32, 16))
    exif = pillow.Exif()
    exif[0x0112] = orientation
    as_stored = decode_image(encoded(picture, kind)).pixels
    turned = decode_image(encoded(picture, kind, exif=exif)).pixels
    assert torch.equal(turned, upright(as_stored))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_a_file_that_is_cut_short_is_corrupt(kind):
    data = encoded(picture_of(noise()), kind)
    for share in (0.01, 0.3, 0.9):
        cut = data[:max(10, int(len(data) * share))]
        with pytest.raises(ImageCorruptError,
                           match=f'image: expected a whole {kind} file, got {len(cut)} bytes'):
            decode_image(cut)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_a_damaged_file_decodes_or_is_refused_by_name(kind):
    data, rng, refused = encoded(picture_of(noise()), kind), random.Random(3), 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[rng.randrange(8, len(data))] = rng.randrange(256)
        try:
            decode_image(bytes(damaged))
        except (ImageCorruptError, ImageUnsupportedError):
            refused += 1
    assert refused > 30


@pytest.mark.parametrize('data', [
    b'', b'\0' * 64, b'BM\x1e\0\0\0', encoded(pillow.new('RGB', (4, 4)), 'GIF'),
    encoded(pillow.new('RGB', (4, 4)), 'TIFF'), b'%!PS-Adobe-3.0 EPSF-3.0'])
def test_a_file_of_another_format_is_refused_before_it_is_read(data):
    with pytest.raises(ImageUnsupportedError, match='image: expected a JPEG or PNG file, got'):
        decode_image(data)


@pytest.mark.parametrize('width, height', [(4097, 4096), (20000, 20000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(width, height):
    with pytest.raises(ImageUnsupportedError,
                       match=f'image: expected at most 16777216 pixels, got {width} x {height}'):
        decode_image(png(width, height, 8, 0, b'\0' * 1000))


def test_a_file_of_too_many_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(engine_image, 'MAX_FILE_BYTES', 100)
    with pytest.raises(ImageUnsupportedError, match='image: expected at most 100 bytes, got 101'):
        decode_image(bytes(101))


@pytest.mark.parametrize('pixels', [
    torch.zeros(4, 4, 3), torch.zeros(3, 4, 4, dtype=torch.uint8),
    torch.zeros(4, 4, dtype=torch.uint8)])
def test_pixels_of_another_type_or_shape_are_refused(pixels):
    with pytest.raises(ImageUnsupportedError, match=r'expected pixels of uint8 \[height, width'):
        Image(pixels)


def test_an_image_without_pixels_is_corrupt():
    with pytest.raises(ImageCorruptError, match='expected one pixel or more, got 4 x 0'):
        Image(torch.zeros(0, 4, 3, dtype=torch.uint8))


def test_equal_images_have_equal_keys_and_others_have_others():
    pixels = noise(8, 4)
    key = Image(pixels).key
    assert 0 <= key < 2**63
    assert Image(pixels.clone()).key == key
    # The same pixels, otherwise in memory.
    assert Image(pixels.transpose(0, 1).contiguous().transpose(0, 1)).key == key
    changed = pixels.clone()
    changed[3, 7, 2] ^= 1
    assert len({key, Image(changed).key, Image(pixels.reshape(8, 4, 3)).key}) == 3


def test_a_model_that_takes_text_alone_says_so(make_engine):
    engine = make_engine()
    assert not engine.info.sees
    with pytest.raises(ModelCannotSeeError, match='image: expected none, since chat_model'):
        next(engine.generate(Request('What is it?', image=Image(noise()))))
    assert [chunk for chunk in engine.generate(Request('hi'))][-1].result.text
