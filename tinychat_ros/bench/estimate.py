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
"""How fast a model can be at most on a device, since each token reads all of its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

# As the engine takes no more of what is free.
_MEMORY_SHARE = 0.9


class Device(NamedTuple):
    """
    Where a model can run.

    :param memory: bytes, which on a Jetson the CPU and the GPU share.
    :param bandwidth: of that memory, bytes per second.
    :param measured: here and now; else it is the vendor's figure, which no reading reaches.
    """

    name: str
    memory: int
    bandwidth: float
    measured: bool = False


# NVIDIA's figures, https://developer.nvidia.com/embedded/jetson-modules.
JETSONS = (
    Device('Jetson AGX Orin 64GB', 64 * 2**30, 204.8e9),
    Device('Jetson AGX Orin 32GB', 32 * 2**30, 204.8e9),
    Device('Jetson Orin NX 16GB', 16 * 2**30, 102.4e9),
    Device('Jetson Orin NX 8GB', 8 * 2**30, 102.4e9),
    Device('Jetson Orin Nano 8GB', 8 * 2**30, 68e9),
    Device('Jetson Orin Nano 8GB, Super mode', 8 * 2**30, 102e9),
)


@dataclass(frozen=True)
class Estimate:
    """
    What a model is on a device.

    :param fits: in 90 % of the memory, with nothing else running.
    :param tokens_per_second_limit: bandwidth over the bytes that a token reads. It bounds
        decoding, and is not what is reached.
    """

    name: str
    memory_bytes: int
    bandwidth_gbs: float
    measured: bool
    fits: bool
    tokens_per_second_limit: float


def estimate(device: Device, needed: int, bytes_per_token: int) -> dict[str, Any]:
    """
    Return the fields of an Estimate.

    :param needed: bytes of weights and KV cache.
    """
    return asdict(Estimate(device.name, device.memory, device.bandwidth / 1e9, device.measured,
                           needed <= _MEMORY_SHARE * device.memory,
                           device.bandwidth / bytes_per_token))
