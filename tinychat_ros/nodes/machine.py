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
"""What the kernel tells of the machine, and more of a Jetson. What is not there is not told."""

from __future__ import annotations

from pathlib import Path
import re
from typing import Optional, Union

# A thermal zone of a unit that is switched off reads this, in thousandths of a degree.
_OFF = -256000


def figures(root: Path = Path('/')) -> dict[str, Union[str, int, float]]:
    """
    Return memory, GPU temperature, throttling and power mode by their names on /diagnostics.

    :param root: where /proc, /sys, /etc and /var are.
    """
    found = {
        'free memory [MiB]': _mebibytes(root / 'proc/meminfo', 'MemAvailable'),
        'peak memory of the process [MiB]': _mebibytes(root / 'proc/self/status', 'VmHWM'),
        'GPU temperature [C]': _gpu_temperature(root),
        'throttled': _throttled(root),
        'over-current events since boot': _over_current_events(root),
        'power mode': _power_mode(root),
    }
    return {name: value for name, value in found.items() if value is not None}


def _mebibytes(path: Path, name: str) -> Optional[int]:
    line = re.search(rf'^{name}:\s*(\d+) kB', _read(path), re.MULTILINE)
    return int(line[1]) // 1024 if line else None


def _gpu_temperature(root: Path) -> Optional[float]:
    """Return the temperature of the hottest zone that names the GPU, in degrees Celsius."""
    zones = (root / 'sys/class/thermal').glob('thermal_zone*')
    texts = [_read(zone / 'temp') for zone in zones if 'gpu' in _read(zone / 'type').lower()]
    return max((int(text) / 1000 for text in texts if text and int(text) > _OFF), default=None)


def _throttled(root: Path) -> Optional[str]:
    """Return which alerts throttle a clock now."""
    devices = (root / 'sys/class/thermal').glob('cooling_device*')
    states = {_read(device / 'type'): _read(device / 'cur_state') for device in devices}
    alerts = [name for name in sorted(states) if name.endswith('-throttle-alert')]
    active = [name for name in alerts if states[name] not in ('', '0')]
    return (', '.join(active) or 'no') if alerts else None


def _over_current_events(root: Path) -> Optional[int]:
    counters = [_read(path) for path in (root / 'sys/class/hwmon').glob('*/oc*_event_cnt')]
    return sum(int(text) for text in counters if text) if counters else None


def _power_mode(root: Path) -> Optional[str]:
    """Return the name of the power mode, or its number where it has none."""
    mode = re.search(r'pmode:(\d+)', _read(root / 'var/lib/nvpmodel/status'))
    if mode is None:
        return None
    number = int(mode[1])
    name = re.search(rf'^< POWER_MODEL ID={number} NAME=(\S+)',
                     _read(root / 'etc/nvpmodel.conf'), re.MULTILINE)
    return name[1] if name else str(number)


def _read(path: Path) -> str:
    """Return what a file says, '' where it cannot be read now."""
    try:
        with open(path, 'rb', buffering=0) as file:
            # A sensor of a unit that sleeps asks to try again, for which read returns None.
            return (file.read() or b'').decode(errors='replace').strip()
    except OSError:
        return ''
