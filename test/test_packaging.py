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
"""Both packages install all that they hold, and they agree with each other."""

from importlib import import_module
from importlib.metadata import EntryPoint
from importlib.util import find_spec
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import sysconfig
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
INTERFACES = sorted(
    path.relative_to(ROOT / 'tinychat_msgs')
    for kind in ('msg', 'srv', 'action')
    for path in (ROOT / 'tinychat_msgs' / kind).iterdir())

needs_ros = pytest.mark.skipif(find_spec('rclpy') is None, reason='rclpy is not installed')

READ_SETUP = """
import json
import setuptools
import distutils.core
distribution = distutils.core.run_setup('setup.py', stop_after='init')
print(json.dumps({
    'version': distribution.get_version(),
    'packages': distribution.packages,
    'package_data': distribution.package_data,
    'data_files': distribution.data_files,
    'console_scripts': distribution.entry_points['console_scripts'],
    'test': distribution.extras_require['test'],
}))
"""


@pytest.fixture(scope='module')
def setup_arguments() -> dict:
    """Return what setup.py would install."""
    command = [sys.executable, '-c', READ_SETUP]
    return json.loads(subprocess.check_output(command, cwd=ROOT, text=True).splitlines()[-1])


def constants(path: str) -> dict:
    """Return the constants of an interface file: name to value and comment."""
    text = (ROOT / 'tinychat_msgs' / path).read_text(encoding='utf-8')
    lines = re.findall(r'^uint8 ([A-Z_]+)=(\d+) *(.*)$', text, re.MULTILINE)
    return {name: (int(value), comment) for name, value, comment in lines}


def manifest_text(path: str, tag: str) -> list:
    """Return the texts of all elements of that tag in a package.xml."""
    return [element.text for element in ElementTree.parse(ROOT / path).iter(tag)]


def build_kernels(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run setup.py's build_ext outside the source tree, with the programs of a folder alone."""
    return subprocess.run(
        [sys.executable, str(ROOT / 'setup.py'), 'build_ext',
         '--build-lib', str(folder), '--build-temp', str(folder / 'temp')],
        cwd=ROOT, env={**os.environ, 'TINYCHAT_REQUIRE_EXT': '', 'PATH': str(folder),
                       'CUDA_HOME': str(folder), **environment},
        capture_output=True, text=True)


def test_both_packages_have_one_version(setup_arguments):
    """setup.py and both package.xml agree."""
    versions = manifest_text('package.xml', 'version')
    versions += manifest_text('tinychat_msgs/package.xml', 'version')
    assert versions == [setup_arguments['version']] * 2


def test_every_launch_and_config_file_is_installed(setup_arguments):
    """The share folder gets each of them, and what ament looks for."""
    installed = dict(setup_arguments['data_files'])
    share = 'share/tinychat_ros'
    for folder in ('launch', 'config'):
        present = [f'{folder}/{path.name}' for path in sorted((ROOT / folder).iterdir())
                   if path.is_file()]
        assert present and installed[f'{share}/{folder}'] == present
    assert installed[share] == ['package.xml']
    assert installed['share/ament_index/resource_index/packages'] == ['resource/tinychat_ros']


def test_every_module_and_data_file_of_the_package_is_installed(setup_arguments):
    """No folder is forgotten, and no file that is not Python."""
    for path in sorted((ROOT / 'tinychat_ros').rglob('*')):
        if not path.is_file() or '__pycache__' in path.parts:
            continue
        package = '.'.join(path.relative_to(ROOT).parent.parts)
        patterns = ['*.py', *setup_arguments['package_data'].get(package, [])]
        assert package in setup_arguments['packages'], path
        assert any(path.match(pattern) for pattern in patterns), path


def test_the_tests_are_not_installed_and_colcon_runs_them_with_pytest(setup_arguments):
    """Only tinychat_ros is a package; colcon picks pytest where the extra names it."""
    assert {name.split('.')[0] for name in setup_arguments['packages']} == {'tinychat_ros'}
    assert setup_arguments['test'] == ['pytest']


@pytest.mark.parametrize('name', ['tinychat', *(
    pytest.param(name, marks=needs_ros)
    for name in ('chat_node', 'prompt_publisher', 'speech_client', 'dispatcher'))])
def test_the_console_script_resolves(setup_arguments, name):
    """Its entry point names a function."""
    targets = dict(line.split(' = ') for line in setup_arguments['console_scripts'])
    assert callable(EntryPoint(name, targets[name], 'console_scripts').load())


def test_every_imported_ros_package_is_declared():
    """The manifest names what the modules import from ROS."""
    declared = manifest_text('package.xml', 'exec_depend')
    for path in sorted((ROOT / 'tinychat_ros').rglob('*.py')):
        text = path.read_text(encoding='utf-8')
        for name in re.findall(r'^ *(?:from|import) (rclpy|\w+_msgs|\w+_interfaces)\b', text,
                               re.MULTILINE):
            assert name in declared, f'{path}: {name} is not in package.xml'


def test_cmake_builds_every_interface_file():
    """The list in CMakeLists.txt is complete."""
    cmake = (ROOT / 'tinychat_msgs' / 'CMakeLists.txt').read_text(encoding='utf-8')
    assert re.findall(r'^  ((?:msg|srv|action)/\S+)$', cmake, re.MULTILINE) == sorted(
        (path.as_posix() for path in INTERFACES),
        key=lambda path: (['msg', 'srv', 'action'].index(path.split('/')[0]), path))


@needs_ros
@pytest.mark.parametrize('path', INTERFACES, ids=str)
def test_every_interface_can_be_imported(path):
    """The built tinychat_msgs is the one of this source tree."""
    module = import_module(f'tinychat_msgs.{path.parts[0]}')
    assert getattr(module, path.stem).__name__ == path.stem


@needs_ros
def test_a_message_left_as_it_is_leaves_the_choice_to_the_node():
    """The defaults are those that the comments of the fields promise."""
    messages = import_module('tinychat_msgs.msg')
    sampling = messages.Prompt().sampling
    assert {getattr(sampling, field) for field in sampling.get_fields_and_field_types()} == {-1}
    assert messages.Interrupt().spoken_char_end == -1


def test_finish_reasons_are_the_same_wherever_they_stand():
    """A user may write TokenChunk.STOP, Response.STOP or Generate.Result.STOP."""
    reasons = constants('msg/TokenChunk.msg')
    assert [value for value, _ in reasons.values()] == list(range(7))
    for path in ('msg/Response.msg', 'action/Generate.action'):
        assert reasons.items() <= constants(path).items()


def test_error_codes_are_the_same_wherever_they_stand():
    """The constants of Response that are no finish reasons are those of the action's result."""
    reasons = constants('msg/TokenChunk.msg')
    codes = {name: value for name, value in constants('msg/Response.msg').items()
             if name not in reasons}
    assert [value for value, _ in codes.values()] == list(range(11))
    assert codes.items() <= constants('action/Generate.action').items()


@needs_ros
def test_an_import_without_the_messages_says_how_to_build_them():
    """A plain colcon build in another workspace does not find the second package."""
    script = ("import sys; sys.modules['tinychat_msgs'] = None; "
              'import tinychat_ros.nodes.messages')
    result = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    last_line = result.stderr.splitlines()[-1]
    assert 'tinychat_msgs' in last_line and 'colcon_defaults.yaml' in last_line


def test_without_a_compiler_the_package_is_built_without_kernels(tmp_path):
    """One line says why, and a module of an earlier build is not left behind."""
    stale = tmp_path / f'tinychat_kernels{sysconfig.get_config_var("EXT_SUFFIX")}'
    stale.touch()
    os.utime(stale, (0, 0))
    result = build_kernels(tmp_path, CC='no-such-compiler', CXX='no-such-compiler')
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stderr.splitlines() if 'left out' in line]
    assert line.startswith('tinychat_ros: the compiled kernels are left out')
    assert 'no-such-compiler' in line
    assert not stale.exists()


def test_a_build_that_requires_the_kernels_fails_without_a_compiler(tmp_path):
    """TINYCHAT_REQUIRE_EXT=1 is for those who want no slow fallback."""
    result = build_kernels(tmp_path, CC='no-such-compiler', CXX='no-such-compiler',
                           TINYCHAT_REQUIRE_EXT='1')
    assert result.returncode != 0
    assert 'no-such-compiler' in result.stderr


@pytest.mark.parametrize('named, codes', [
    ({}, ['87,code=sm_87', '90,code=sm_90', '90,code=compute_90']),
    ({'TINYCHAT_CUDA_ARCHITECTURES': '87'}, ['87,code=sm_87', '87,code=compute_87']),
], ids=['default', 'one'])
def test_each_cuda_source_is_compiled_for_the_architectures_that_are_named(tmp_path, named, codes):
    """An nvcc that compiles nothing notes what it was called with."""
    nvcc = tmp_path / 'nvcc'
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --dryrun ] || echo "$@" >> {tmp_path}/calls\n')
    nvcc.chmod(0o755)
    assert build_kernels(tmp_path, **named).returncode == 0
    calls = (tmp_path / 'calls').read_text().splitlines()
    assert len(calls) == len(list(ROOT.glob('csrc/cuda/*.cu')))
    for call in calls:
        assert re.findall(r'-gencode=arch=compute_(\S+)', call) == codes
