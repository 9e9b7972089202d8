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
"""Images as a tower reads them: those of transformers, to the rounding of fp32."""

import json

import pytest
from tiny_llava import random_image
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tinychat_ros.engine.image import Image
from tinychat_ros.engine.image_processor import _NUMBERS, _STEPS, ImageProcessor
from tinychat_ros.errors import CheckpointError, ImageUnsupportedError

SIDES = [(23, 37), (37, 23), (336, 336), (480, 641), (20, 20), (3, 5), (1, 30)]
CONFIGS = {
    'the shortest edge': {'size': {'shortest_edge': 20}, 'crop_size': {'height': 20, 'width': 20}},
    'numbers': {'size': 20, 'crop_size': 20},
    'a margin': {'size': {'shortest_edge': 25}, 'crop_size': {'height': 20, 'width': 20}},
    'a black frame': {'size': {'shortest_edge': 13}, 'crop_size': {'height': 20, 'width': 20}},
    'a square': {'size': {'height': 20, 'width': 20}, 'crop_size': 20},
    'another scale': {'size': 20, 'crop_size': 20, 'image_mean': [0.5, 0.4, 0.3],
                      'image_std': [0.5, 0.6, 0.7], 'rescale_factor': 1 / 127.5},
}


def load(path, config, name='preprocessor_config.json'):
    """Write a processor's file and read it."""
    (path / name).write_text(json.dumps(config))
    return ImageProcessor.load(path, 20)


def smooth_image(height, width):
    """Return an image with edges and gradients, as a camera has them."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    pixels = torch.stack([x * 7 % 256, y * 5 % 256, (x * y) % 200 + 50], dim=-1)
    return Image(pixels.to(torch.uint8))


@pytest.mark.parametrize('height, width', SIDES)
@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS.keys())
def test_pixel_values_are_those_of_transformers(config, height, width, tmp_path):
    processor = load(tmp_path, config)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    for image in (random_image(1, height, width), smooth_image(height, width)):
        expected = theirs(image.pixels.numpy(), return_tensors='pt',
                          input_data_format='channels_last')['pixel_values'][0]
        found = processor.pixel_values(processor.fitted(image))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_file_of_newer_versions_says_the_same(tmp_path):
    older, newer = tmp_path / 'older', tmp_path / 'newer'
    older.mkdir()
    newer.mkdir()
    config = CONFIGS['another scale']
    image = random_image()
    first = load(older, config)
    second = load(newer, {'image_processor': config, 'patch_size': 14}, 'processor_config.json')
    assert torch.equal(*(p.pixel_values(p.fitted(image)) for p in (first, second)))


def test_null_means_what_is_usual(tmp_path):
    usual = load(tmp_path, {'size': 20, 'crop_size': 20})
    nulls = dict.fromkeys((*_STEPS, *_NUMBERS, 'pad_size'))
    found = load(tmp_path, {'size': 20, 'crop_size': 20, **nulls})
    image = random_image()
    assert torch.equal(*(p.pixel_values(p.fitted(image)) for p in (usual, found)))


def test_a_fitted_image_stays_as_it_is(tmp_path):
    processor = load(tmp_path, CONFIGS['a margin'])
    fitted = processor.fitted(random_image())
    assert fitted.pixels.shape == (20, 20, 3)
    assert processor.fitted(fitted) is fitted
    assert processor.fitted(random_image()).key == fitted.key
    assert processor.fitted(random_image(1)).key != fitted.key


def test_a_strip_that_would_be_huge_is_refused(tmp_path):
    processor = load(tmp_path, CONFIGS['numbers'])
    with pytest.raises(ImageUnsupportedError, match='got 20 x 20000000'):
        processor.fitted(Image(torch.zeros(1, dtype=torch.uint8).expand(1000000, 1, 3)))


@pytest.mark.parametrize('change, named', [
    ({'do_pad': True}, 'do_pad: expected False, got True'),
    ({'do_normalize': False}, 'do_normalize: expected True'),
    ({'resample': 2}, 'resample: expected 3, got 2'),
    ({'crop_size': 19}, 'crop_size of 20 as config.json has it, got 20 and 19'),
    ({'crop_size': {'height': 20, 'width': 21}}, 'crop_size of 20'),
    ({'size': {'longest_edge': 20}}, 'expected a size'),
    ({'size': 0}, 'expected a size'),
    ({'image_mean': [0.5, 0.5]}, 'expected numbers'),
    ({'image_std': 'wide'}, 'expected numbers'),
    ({'rescale_factor': []}, 'expected numbers'),
])
def test_what_is_not_built_is_refused_by_name(change, named, tmp_path):
    with pytest.raises(CheckpointError, match=f'preprocessor_config.json: .*{named}'):
        load(tmp_path, {**CONFIGS['numbers'], **change})


def test_a_folder_without_a_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='processor_config.json: expected a file'):
        ImageProcessor.load(tmp_path, 20)
