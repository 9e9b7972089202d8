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
"""What is read of a machine, from a tree of files like that of a Jetson, and from this machine."""

import pytest

from tinychat_ros.nodes.machine import figures

THERMAL, HWMON = 'sys/class/thermal', 'sys/class/hwmon'
NVPMODEL = """
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MODE_30W >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=2 >
"""
JETSON = {
    'proc/meminfo': 'MemTotal: 31285084 kB\nMemAvailable:   24064000 kB\n',
    'proc/self/status': 'Name:\tpython3\nVmHWM:\t  307200 kB\n',
    f'{THERMAL}/thermal_zone0/type': 'cpu-thermal', f'{THERMAL}/thermal_zone0/temp': '71000',
    f'{THERMAL}/thermal_zone1/type': 'gpu-thermal', f'{THERMAL}/thermal_zone1/temp': '48562',
    f'{THERMAL}/cooling_device0/type': 'pwm-fan', f'{THERMAL}/cooling_device0/cur_state': '3',
    f'{THERMAL}/cooling_device1/type': 'gpu-throttle-alert',
    f'{THERMAL}/cooling_device1/cur_state': '0',
    f'{THERMAL}/cooling_device2/type': 'cpu-throttle-alert',
    f'{THERMAL}/cooling_device2/cur_state': '0',
    f'{HWMON}/hwmon1/name': 'ina3221', f'{HWMON}/hwmon3/oc1_event_cnt': '0',
    f'{HWMON}/hwmon3/oc2_event_cnt': '2', f'{HWMON}/hwmon3/oc3_event_cnt': '15',
    'var/lib/nvpmodel/status': 'pmode:0002',
    'etc/nvpmodel.conf': NVPMODEL,
}


@pytest.fixture
def figures_of(tmp_path):
    """Return a function that reads a Jetson on which some files say something else, or nothing."""
    def read(changes=None):
        for name, text in {**JETSON, **(changes or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'{text}\n')
        return figures(tmp_path)

    return read


def test_a_jetson_tells_all(figures_of):
    assert figures_of() == {
        'free memory [MiB]': 23500, 'peak memory of the process [MiB]': 300,
        'GPU temperature [C]': 48.562, 'throttled': 'no', 'over-current events since boot': 17,
        'power mode': 'MODE_30W'}


def test_alerts_that_throttle_are_named(figures_of):
    state = f'{THERMAL}/cooling_device%d/cur_state'
    assert figures_of({state % 1: '1'})['throttled'] == 'gpu-throttle-alert'
    assert figures_of({state % 1: '1', state % 2: '2'})['throttled'] == (
        'cpu-throttle-alert, gpu-throttle-alert')


def test_the_hottest_zone_of_the_gpu_counts(figures_of):
    more = {f'{THERMAL}/thermal_zone2/type': 'GPU-therm', f'{THERMAL}/thermal_zone2/temp': '60000'}
    assert figures_of(more)['GPU temperature [C]'] == 60.0


@pytest.mark.parametrize('text', ['', '-256000'])
def test_a_gpu_that_sleeps_has_no_temperature(figures_of, text):
    assert 'GPU temperature [C]' not in figures_of({f'{THERMAL}/thermal_zone1/temp': text})


@pytest.mark.parametrize('status, mode', [('pmode:0000', 'MAXN'), ('pmode:0007', '7')])
def test_a_power_mode_is_told_by_name_where_it_has_one(figures_of, status, mode):
    assert figures_of({'var/lib/nvpmodel/status': status})['power mode'] == mode


def test_what_is_not_there_is_not_told(figures_of, tmp_path):
    assert figures(tmp_path) == {}
    assert 'power mode' not in figures_of({'var/lib/nvpmodel/status': ''})


def test_this_machine_tells_its_memory():
    found = figures()
    assert found['free memory [MiB]'] > 0
    assert found['peak memory of the process [MiB]'] > 10
