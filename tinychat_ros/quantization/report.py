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
"""A page for a person to look at: what quantization did to every layer, in plots and a table."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from math import ceil, inf, isnan, nan
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

from jinja2 import Environment

from tinychat_ros.checkpoint.writer import replace_file
from tinychat_ros.errors import ConfigError

_TEMPLATE = Path(__file__).with_name('report.html')
_MAX_TICKS = 32


@dataclass(frozen=True)
class LayerResult:
    """
    What became of one linear of N output and K input features.

    :param name: such as ``model.layers.3.mlp.down_proj``.
    :param bits: of a weight; 16 was left in fp16.
    :param group_size: None for one scale per output channel, and where nothing was quantized.
    :param loss_rtn: mean squared error of the layer's output with plain rounding; None without
        calibration.
    :param loss: the same with the method used.
    :param alpha: exponent of the activations in the scale; None where no scale was searched.
    :param bytes_before: of the weight as the source stores it.
    :param bytes_after: of the weight as it was written, with its scales and zero points.
    :param note: why the layer is an exception, if it is one.
    """

    name: str
    n: int
    k: int
    bits: int
    group_size: Optional[int]
    loss_rtn: Optional[float]
    loss: Optional[float]
    alpha: Optional[float]
    bytes_before: int
    bytes_after: int
    note: str = ''


def require_matplotlib(option: str = 'report') -> None:
    """
    Find out whether plots can be drawn.

    :param option: that asks for them.
    :raises ConfigError: matplotlib cannot be imported.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'{option}: expected matplotlib to draw with (pip install matplotlib), '
                          f'got: {error}') from None


def write_report(folder: Path, title: str, facts: Mapping[str, str],
                 layers: Sequence[LayerResult]) -> None:
    """
    Write index.html, which needs no other file, and its plots as losses, alphas and sizes .png.

    :param folder: made where it is missing; each file appears whole or not.
    :param facts: the rows of the table at the top.
    :param layers: in the model's order.
    :raises ConfigError: matplotlib cannot be imported.
    """
    require_matplotlib()
    plots = {name: _png(draw, layers) for name, draw in _PLOTS.items()}
    page = _page(title, facts, layers, plots)
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in plots.items():
        replace_file(folder / f'{name}.png', lambda path, png=png: path.write_bytes(png))
    # A fact may be a path, and a path may hold bytes that are not UTF-8.
    replace_file(folder / 'index.html',
                 lambda path: path.write_text(page, encoding='utf-8', errors='replace'))


def _page(title: str, facts: Mapping[str, str], layers: Sequence[LayerResult],
          plots: Mapping[str, bytes]) -> str:
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters.update(group=_group, number=_number, ratio=_ratio, size=_size)
    environment.tests['worse_than_rtn'] = _is_worse
    template = environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))
    encoded = {name: b64encode(png).decode() for name, png in plots.items()}
    return template.render(title=title, facts=facts, layers=layers, plots=encoded)


def _group(layer: LayerResult) -> str:
    if layer.group_size:
        return str(layer.group_size)
    return 'per channel' if layer.bits < 16 else '–'


def _ratio(layer: LayerResult) -> Optional[float]:
    return layer.loss / layer.loss_rtn if layer.loss is not None and layer.loss_rtn else None


def _is_worse(layer: LayerResult) -> bool:
    ratio = _ratio(layer)
    # Not `ratio > 1`, which NaN is not either.
    return ratio is not None and not ratio <= 1


def _number(value: Optional[float]) -> str:
    return '–' if value is None else f'{value:.3g}'


def _size(num_bytes: float) -> str:
    for unit in ('B', 'kB', 'MB'):
        if num_bytes < 999.5:
            return f'{num_bytes:.3g} {unit}'
        num_bytes /= 1000
    return f'{num_bytes:.3g} GB'


def _png(draw: Callable[[Any, Sequence[LayerResult]], None],
         layers: Sequence[LayerResult]) -> bytes:
    from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 5), constrained_layout=True)
    axes = figure.add_subplot()
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    draw(axes, layers)
    axes.legend(*axes.get_legend_handles_labels(), loc='upper left', bbox_to_anchor=(1, 1),
                frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format='png', dpi=150)
    return buffer.getvalue()


def _draw_losses(axes: Any, layers: Sequence[LayerResult]) -> None:
    axes.plot([], [], 'o', color='gray', markerfacecolor='none', label='RTN')
    axes.plot([], [], 'o', color='gray', label='method used')
    for color, kind, places in _kinds(layers):
        rtn = [_positive(layers[place].loss_rtn) for place in places]
        loss = [_positive(layers[place].loss) for place in places]
        axes.vlines(places, loss, rtn, color=color, alpha=0.4, linewidth=1)
        axes.plot(places, rtn, 'o', color=color, markerfacecolor='none', markersize=4)
        axes.plot(places, loss, 'o-', color=color, markersize=4, linewidth=0.8, label=kind)
    axes.set_yscale('log')
    axes.set_ylabel('mean squared error of the output')
    _label_blocks(axes, layers)


def _draw_alphas(axes: Any, layers: Sequence[LayerResult]) -> None:
    for color, kind, places in _kinds(layers):
        alphas = [nan if (alpha := layers[place].alpha) is None else alpha for place in places]
        axes.plot(places, alphas, 'o:', color=color, markersize=5, linewidth=0.8, label=kind)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel('alpha')
    _label_blocks(axes, layers)


def _label_blocks(axes: Any, layers: Sequence[LayerResult]) -> None:
    """Mark where each block begins, and say so where there is nothing to see."""
    blocks: dict[str, int] = {}
    for place, layer in enumerate(layers):
        number = next(filter(str.isdecimal, layer.name.split('.')), None)
        if number:
            blocks.setdefault(number, place)
    step = ceil(len(blocks) / _MAX_TICKS) or 1
    axes.set_xticks(list(blocks.values())[::step], list(blocks)[::step])
    axes.set_xlabel('block')
    if all(isnan(value) for line in axes.lines for value in line.get_ydata()):
        axes.text(0.5, 0.5, 'no values', transform=axes.transAxes, ha='center')


def _draw_sizes(axes: Any, layers: Sequence[LayerResult]) -> None:
    kinds = _kinds(layers)
    groups = [*([layers[place] for place in places] for _, _, places in kinds), layers]
    rows = range(len(groups))
    before = [sum(layer.bytes_before for layer in group) for group in groups]
    after = [sum(layer.bytes_after for layer in group) for group in groups]
    axes.barh(rows, before, -0.4, align='edge', color='silver', label='before')
    axes.barh(rows, after, 0.4, align='edge', color='C0', label='after')
    for row, old, new in zip(rows, before, after):
        axes.text(max(old, new), row, f' {_size(old)} → {_size(new)}', va='center')
    axes.set_yticks(rows, [*(kind for _, kind, _ in kinds), 'total'])
    axes.invert_yaxis()
    axes.grid(visible=False, axis='y')
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(lambda value, _: _size(value))
    axes.set_xlabel('weights')


def _kinds(layers: Sequence[LayerResult]) -> list[tuple[str, str, list[int]]]:
    """Return a color, the name and the places in the model of each kind of layer."""
    places: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        # Escaped, since matplotlib reads a formula between dollar signs.
        kind = layer.name.rpartition('.')[2].replace('$', r'\$')
        places.setdefault(kind, []).append(place)
    return [(f'C{index % 10}', kind, places[kind]) for index, kind in enumerate(places)]


def _positive(value: Optional[float]) -> float:
    """Return what a logarithmic axis can show, or NaN, which leaves a gap."""
    return value if value is not None and 0 < value < inf else nan


_PLOTS = {'losses': _draw_losses, 'alphas': _draw_alphas, 'sizes': _draw_sizes}
