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
"""The table names every figure, and the plot is a picture."""

from given_times import MEASURED

from tinychat_ros.bench.figures import figures
from tinychat_ros.bench.table import plot, table


def document() -> dict:
    return {'device': 'cpu', 'gpu': None, **figures(MEASURED)}


def test_the_table_has_a_line_for_every_row_and_every_single_figure():
    lines = table(document())
    assert [line.split() for line in lines[:4]] == [
        ['device', 'cpu'], ['gpu', '-'], ['read_bandwidth_gbs', '100'],
        ['copy_bandwidth_gbs', '80']]
    kernels = lines.index('') + 1
    assert lines[kernels].split()[:4] == ['kernel', 'm', 'n', 'k']
    assert lines[kernels + 1].split() == [
        'qkv', '1', '300', '100', '10', '1.0', '0.5', '2.0', '20.0', '80.0', '25.0%']
    assert [line.split()[0] for line in lines[kernels + 1:kernels + 5]] == [
        'qkv', 'attention@4', 'attention@64', 'lm_head']
    assert len({len(line) for line in lines[kernels:kernels + 5]}) == 1
    assert len(lines) == 8 + 4 * 2 + 4 + 1 + 2 + 1


def test_what_was_not_measured_is_a_dash():
    row = next(line for line in table(document()) if line.startswith('64 '))
    assert row.split()[5] == '-'


def test_the_plot_is_a_png():
    assert plot(document(), 'a title').startswith(b'\x89PNG\r\n\x1a\n')
