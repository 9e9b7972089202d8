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
"""Tells whether files are the same as before: by what stat says, or by their content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Iterable

_PIECE_BYTES = 2**20

# Of each file its name, size, mtime and ctime in nanoseconds, and inode.
Signature = list[list[Any]]


def signature(files: Iterable[Path]) -> Signature:
    """
    Return what changes when a file is written to or replaced, without reading any.

    :raises OSError: a file is not there.
    """
    stats = [(file.name, file.stat()) for file in files]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]


def content_hash(files: Iterable[Path]) -> str:
    """
    Return the SHA-256 of the files' names and contents, in hexadecimal.

    :raises OSError: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in files:
        content = hashlib.sha256()
        with open(path, 'rb') as file:
            while piece := file.read(_PIECE_BYTES):
                content.update(piece)
        total.update(f'{path.name}\0{content.hexdigest()}\n'.encode())
    return total.hexdigest()
