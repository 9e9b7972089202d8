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
"""What `tinychat inspect` found, for a person to read."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from tinychat_ros.bench.table import aligned
from tinychat_ros.checkpoint.summary import LayerGroup


def table(document: Mapping[str, Any], groups: Sequence[LayerGroup]) -> list[str]:
    """Return the lines of a document of inspect, and of its layers."""
    return [*_facts(document), '', *_limits(document), '', *_layers(groups), '',
            *_kernels(document)]


def _facts(document: Mapping[str, Any]) -> list[str]:
    context = document['context']
    facts = {
        'architecture': document['architecture'],
        'format': document['format'],
        'parameters': f"{document['parameters']:,}",
        'vocabulary': document['vocab_size'],
        'positions': document['max_position_embeddings'],
        'weights per token': _size(document['weight_bytes_per_token']),
        'KV per position': f"{_size(document['kv_bytes_per_position'])} in 16 bits",
        'memory': f"{_size(document['memory_bytes'])} for weights and one conversation of "
                  f'{context} positions',
    }
    return [f'{name:18} {value}' for name, value in facts.items()]


def _limits(document: Mapping[str, Any]) -> list[str]:
    cells = [['limit by bandwidth', 'memory', 'GB/s', 'fits', 'tokens/s']]
    cells += [[device['name'], _size(device['memory_bytes']), f"{device['bandwidth_gbs']:.1f}",
               'yes' if device['fits'] else 'no', f"{device['tokens_per_second_limit']:.1f}"]
              for device in document['devices']]
    return [*aligned(cells), (
        f"A token behind {document['context']} others reads {_size(document['bytes_per_token'])},"
        ' which bounds the speed of what is larger than the caches.'),
        'Of this machine the bandwidth is measured and the memory is what is free; of the others '
        'they are what NVIDIA says.']


def _layers(groups: Sequence[LayerGroup]) -> list[str]:
    cells = [['linears', 'count', 'format', 'group', 'N x K', 'CPU', 'CUDA']]
    reasons: dict[str, int] = {}
    for name, count, layer in groups:
        kernels = [_short(kernel, reasons) for kernel in (layer.cpu, layer.cuda)]
        cells.append([name, str(count), layer.format, str(layer.group_size or '-'),
                      f'{layer.n} x {layer.k}', *kernels])
    return [*aligned(cells), *(f'({number}) {reason}' for reason, number in reasons.items())]


def _short(kernel: str, reasons: dict[str, int]) -> str:
    """Return the name of a kernel, a reason as its number."""
    name, _, reason = kernel.partition(': ')
    return f'{name} ({reasons.setdefault(reason, len(reasons) + 1)})' if reason else name


def _kernels(document: Mapping[str, Any]) -> list[str]:
    facts = {'attention': ('why_no_attention_kernel', 'a kernel', 'the reference'),
             'decode step': ('why_not_recorded', 'recorded', 'op by op')}
    return [f"{title:18} {device.upper():5} {f'{otherwise}: {reason}' if reason else usual}"
            for title, (key, usual, otherwise) in facts.items()
            for device, reason in document[key].items()]


def _size(count: int) -> str:
    for unit, name in ((2**30, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB')):
        if count >= unit:
            return f'{count / unit:.2f} {name}'
    return f'{count} bytes'
