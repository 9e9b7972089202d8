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
"""Joins the files of single blocks into a checkpoint of few files."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from tinychat_ros.checkpoint.reader import open_tensors
from tinychat_ros.checkpoint.writer import save_json, save_tensors

# Two copies of a shard are in memory while it is written.
SHARD_BYTES = 512 * 2**20


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with open_tensors(path) as file:
        return file.metadata() or {}


def join(pieces: Sequence[Path], out_dir: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """
    Write the tensors of all pieces, in their order, as model.safetensors.

    What is larger than ``shard_bytes`` becomes several files and their index, in Hugging Face's
    naming. A piece is never divided.
    """
    shards: list[list[Path]] = []
    room = 0
    for piece in pieces:
        size = piece.stat().st_size
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(piece)
        room -= size
    weight_map: dict[str, str] = {}
    total = 0
    for index, shard in enumerate(shards):
        name = ('model.safetensors' if len(shards) == 1
                else f'model-{index + 1:05}-of-{len(shards):05}.safetensors')
        tensors = {}
        for piece in shard:
            with open_tensors(piece) as file:
                tensors.update({key: file.get_tensor(key) for key in file.keys()})
        save_tensors(out_dir / name, tensors, {'format': 'pt'})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    if len(shards) > 1:
        save_json(out_dir / 'model.safetensors.index.json',
                  {'metadata': {'total_size': total}, 'weight_map': weight_map})
