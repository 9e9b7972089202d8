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
"""What the tables of peers share: matrices of a shape and ratios of rounds."""

from benchmarks import comparison
from benchmarks.comparison import OURS

from tinychat_ros.bench.shapes import shape_config


def test_the_matrices_of_a_shape_hold_all_its_linear_weights():
    found = {m.name: (m.n, m.k, m.count) for m in comparison.matrices(shape_config('llama-3-8b'))}
    assert found == {'qkv': (6144, 4096, 32), 'o': (4096, 4096, 32), 'gate_up': (28672, 4096, 32),
                     'down': (4096, 14336, 32), 'lm_head': (128256, 4096, 1)}


def test_ratios_are_of_the_same_round():
    found = {'peer': [2.0, 2.0, 2.0], OURS: [3.0, 1.0, 2.0], 'other': [3.0, 2.0, 8.0]}
    assert comparison.ratios(found) == {'peer': (0.5, 1, 1.5), 'other': (0.25, 0.5, 1)}
    assert comparison.medians(found) == {'peer': 2, OURS: 2, 'other': 3}


def test_a_ratio_shows_its_median_first():
    assert comparison.ratio_cell((0.5, 1, 1.5)) == '1.000 (0.500-1.500)'
