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
"""The figures of a benchmark for a person to read: as a table, and as a plot."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Mapping, Sequence

# Title, key and format of each column.
_COLUMNS = {
    'kernels': (
        ('kernel', 'name', ''), ('m', 'm', ''), ('n', 'n', ''), ('k', 'k', ''),
        ('calls', 'calls', ''), ('us', 'microseconds', '.1f'), ('p10', 'p10', '.1f'),
        ('p90', 'p90', '.1f'), ('GB/s', 'gbs', '.1f'), ('read', 'read_bandwidth_gbs', '.1f'),
        ('of bandwidth', 'fraction_of_bandwidth', '.1%')),
    'products': (
        ('product', 'name', ''), ('m', 'm', ''), ('n', 'n', ''), ('k', 'k', ''),
        ('calls', 'calls', ''), ('us', 'microseconds', '.1f'), ('p10', 'p10', '.1f'),
        ('p90', 'p90', '.1f'), ('10^9 MAC/s', 'gmacs', '.1f'),
        ('per thread', 'gmacs_per_thread', '.1f'),
        ('of matrix rate', 'fraction_of_matrix_rate', '.1%')),
    'decode': (
        ('decode at', 'context', ''), ('tokens/s', 'tokens_per_second', '.1f'),
        ('ms', 'milliseconds', '.3f'), ('p10', 'p10', '.3f'), ('p90', 'p90', '.3f'),
        ('step ms', 'step_milliseconds', '.3f'), ('kernels ms', 'kernels_milliseconds', '.3f'),
        ('bytes/token', 'bytes_per_token', ''), ('read GB/s', 'read_bandwidth_gbs', '.1f'),
        ('of limit', 'fraction_of_limit', '.1%')),
    'prefill': (
        ('prefill of', 'tokens', ''), ('tokens/s', 'tokens_per_second', '.1f'),
        ('ms', 'milliseconds', '.1f'), ('of matrix rate', 'fraction_of_matrix_rate', '.1%')),
}


def table(document: Mapping[str, Any]) -> list[str]:
    """
    Return the lines of a table.

    :param document: what figures.figures gives, and any keys beside it.
    """
    lines = [f"{key:22} {_cell(value, '.4g' if isinstance(value, float) else '')}"
             for key, value in document.items() if key not in _COLUMNS]
    for key, columns in _COLUMNS.items():
        cells = [[title for title, _, _ in columns]]
        cells += [[_cell(row[name], form) for _, name, form in columns] for row in document[key]]
        lines += ['', *aligned(cells)]
    return lines


def plot(document: Mapping[str, Any], title: str) -> bytes:
    """Return a PNG of how near to its limit each kernel and each decode step comes."""
    from matplotlib.figure import Figure
    bars = [('C0', row['name'], row['fraction_of_bandwidth']) for row in document['kernels']]
    bars += [('C1', f"decode at {row['context']}", row['fraction_of_limit'])
             for row in document['decode']]
    colors, names, fractions = zip(*bars)
    figure = Figure(figsize=(9, 1.5 + 0.3 * len(bars)), constrained_layout=True)
    axes = figure.add_subplot(title=title, xlabel='% of what the read bandwidth allows')
    drawn = axes.barh(range(len(bars)), [100 * fraction for fraction in fractions], color=colors)
    axes.bar_label(drawn, fmt='%.0f', padding=3)
    axes.axvline(100, color='gray', linewidth=0.8)
    axes.set_yticks(range(len(bars)), names)
    axes.invert_yaxis()
    axes.spines[['top', 'right']].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format='png', dpi=150)
    return buffer.getvalue()


def _cell(value: Any, form: str) -> str:
    return '-' if value is None else format(value, form)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines of one width, with the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ['  '.join([row[0].ljust(widths[0]),
                       *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
            for row in cells]
