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
"""Text files, the calibration text among them, and the token samples that a model is run on."""

from __future__ import annotations

from itertools import chain, islice
import json
from pathlib import Path
from random import Random
from typing import Callable, Sequence

import torch
from torch import Tensor

from tinychat_ros.errors import ConfigError

# One object per line, with a text in each.
JSON_LINES = ('.jsonl', '.json')
_BUILT_IN = Path(__file__).with_name('calibration_text.jsonl')


def read_texts(path: Path | None, separator: str = '') -> list[str]:
    """
    Read the texts of a file and leave out those without any character but white space.

    :param path: UTF-8; a ``.jsonl`` or ``.json`` file holds one object with a ``text`` per line,
        any other plain text. None is the text that comes with the package.
    :param separator: what stands between the texts of a plain file, such as ``<|endoftext|>``;
        the white space around it belongs to it. '' makes the whole file one text.
    :raises ConfigError: there is no such file, it is not what it should be, or has no text.
    """
    path = path or _BUILT_IN
    content = _read(path)
    if path.suffix in JSON_LINES:
        # Not splitlines(): a JSON string may hold U+2028, which ends a line there.
        texts = [_text_of(line, f'{path}, line {number}')
                 for number, line in enumerate(content.split('\n'), start=1) if line.strip()]
    elif separator:
        texts = [text.strip() for text in content.split(separator)]
    else:
        texts = [content]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ConfigError(f'{path}: expected text, and there is none in it')
    return texts


def token_samples(texts: Sequence[str], encode: Callable[[str], list[int]], num_samples: int,
                  sample_length: int, seed: int, separate: bool) -> list[Tensor]:
    """
    Return at most ``num_samples`` samples of shuffled texts, each int64 of one dimension.

    Blocks over the joined texts are taken as in llm-awq (https://github.com/mit-han-lab/llm-awq,
    awq/utils/calib_data.py), which leaves out texts that are longer than a block.

    :param encode: ids of a text, with what the tokenizer puts around one, such as BOS.
    :param sample_length: tokens of a block, and the most that a separate sample has.
    :param seed: of the shuffle; one seed gives the same order everywhere.
    :param separate: make each text a sample of its own, cut to the length. Otherwise join the
        texts and cut them into blocks, without what remains at the end.
    :raises ConfigError: the texts do not fill a single block.
    """
    encoded = map(encode, Random(seed).sample(texts, len(texts)))
    if separate:
        samples = [ids[:sample_length] for ids in islice(filter(None, encoded), num_samples)]
    else:
        ids = list(islice(chain.from_iterable(encoded), num_samples * sample_length))
        if len(ids) < sample_length:
            raise ConfigError(f'calibration text: expected at least the {sample_length} tokens of '
                              f'one sample, got {len(ids)}')
        samples = [ids[start:start + sample_length]
                   for start in range(0, len(ids) - sample_length + 1, sample_length)]
    return [torch.tensor(sample, dtype=torch.int64) for sample in samples]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode('utf-8')
    except FileNotFoundError:
        raise ConfigError(f'{path}: expected a file, and there is none') from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(f'{path}: expected UTF-8, got byte 0x{byte:02x} at offset '
                          f'{error.start}') from None
    except OSError as error:
        raise ConfigError(f'{path}: expected a file that can be read, got: {error}') from None


def _text_of(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{place}: expected a JSON object, got: {error}') from None
    text = value.get('text') if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f'{place}: expected a JSON object with a string as "text", got '
                          f'{line[:60]}')
    # An escape may be half of a character, such as \ud800, which no tokenizer takes.
    return text.encode('utf-8', errors='replace').decode('utf-8')
