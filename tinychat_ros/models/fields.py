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
"""Reads single keys of a config.json; what is wrong is named."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from tinychat_ros.errors import CheckpointError

# Torch computes with these numbers in fp32.
_LARGEST_NUMBER = 1e30
# More than any model has of anything; what is made of a config alone stays small.
LARGEST_COUNT = 2**24


def require(config: Mapping[str, Any], key: str) -> Any:
    """Return what must be there."""
    if config.get(key) is None:
        raise CheckpointError(f'config.json: expected the key {key!r}, and it is missing')
    return config[key]


def of_type(config: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """Return a value of one type; a default of None demands it."""
    value = config.get(key)
    value = default if value is None else value
    value = require(config, key) if value is None else value
    if not isinstance(value, kind):
        raise CheckpointError(
            f'config.json: {key}: expected {kind.__name__}, got {type(value).__name__} {value!r}')
    return value


def table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object, empty where it is absent."""
    return of_type(config, key, dict, {})


def count(config: Mapping[str, Any], key: str, default: Optional[int] = None) -> int:
    """Return a positive integer; a default of None demands it."""
    value = config.get(key)
    value = default if value is None and default is not None else require(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f'config.json: {key}: expected a positive integer, got {value!r}')
    if value > LARGEST_COUNT:
        raise CheckpointError(f'config.json: {key}: expected at most {LARGEST_COUNT}, got {value}')
    return value


def number(config: Mapping[str, Any], key: str, default: Optional[float] = None) -> float:
    """Return a positive number; a default of None demands it."""
    value = config.get(key)
    value = default if value is None and default is not None else require(config, key)
    if not _is_number(value):
        raise CheckpointError(f'config.json: {key}: expected a positive number, got {value!r}')
    return value


def optional_number(config: Mapping[str, Any], key: str) -> float:
    """Return a positive number, or 0 where it is absent."""
    return 0.0 if config.get(key) is None else number(config, key)


def numbers(config: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """Return a list of positive numbers that must be there."""
    values = of_type(config, key, list)
    if not all(map(_is_number, values)):
        raise CheckpointError(f'config.json: {key}: expected positive numbers, got {values!r}')
    return tuple(values)


def token_ids(value: Any) -> tuple[int, ...]:
    """Read a token id field, which Hugging Face lets be absent, one number or a list."""
    if value is None:
        return ()
    ids = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise CheckpointError(f'eos_token_id: expected token ids, got {value!r}')
    return tuple(ids)


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and 1 / _LARGEST_NUMBER <= value <= _LARGEST_NUMBER)
