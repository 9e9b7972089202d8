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
"""A run with times that are easy to reckon with."""

from tinychat_ros.bench.figures import Decode, Kernel, Measured, Prefill, Timed
from tinychat_ros.bench.timing import Timing


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds / 2, seconds * 2)


MEASURED = Measured(
    read_bandwidth=100e9, copy_bandwidth=80e9, matrix_rate=1e12,
    kernels=[Timed(Kernel('qkv', 1, 300, 100, 20_000, 10), timing(1e-6), 80e9),
             Timed(Kernel('attention@4', 8, 4, 16, 400, 10, 4), timing(2e-6), 100e9),
             Timed(Kernel('attention@64', 8, 64, 16, 6400, 10, 64), timing(3e-6), 100e9),
             Timed(Kernel('lm_head', 1, 500, 100, 100_000, 1), timing(2e-6), 100e9)],
    products=[(Kernel('qkv', 32, 300, 100, 20_000, 10), timing(1e-5))], threads=2,
    decode=[Decode(4, timing(1e-4), timing(5e-5), 90e9),
            Decode(64, timing(2e-4), None, 100e9)],
    prefill=[Prefill(32, timing(1e-2))],
    time_to_first_token=timing(0.25), load_seconds=1.5, peak_memory_bytes=12345,
    weight_bytes=300_000, kv_bytes=1000, linear_parameters=1_000_000)
