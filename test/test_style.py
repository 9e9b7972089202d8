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
"""Every file keeps the style of ament, carries its licence and names no single machine."""

from pathlib import Path
import re
import subprocess
import sys
from typing import Iterator
from xml.etree import ElementTree

import pytest

LICENSED = {'.cmake', '.cpp', '.cu', '.cuh', '.h', '.py', '.toml', '.yaml'}
LICENSED_NAMES = {'CMakeLists.txt', 'Makefile', 'run', 'setup.cfg'}
TEXT = LICENSED | {'.action', '.md', '.msg', '.rst', '.srv', '.txt', '.xml'}
BUILT = {'build', 'install', 'log', '__pycache__'}

# The paths of ROS are the same on every machine.
MACHINE_PATH = re.compile(r'(?<![\w.:/>-])/(?:work|root|home|tmp|opt(?!/ros))/\w')


def files(root: Path) -> Iterator[Path]:
    """Yield the files of the source tree, without what was built and what hides behind a dot."""
    for path in sorted(root.iterdir()):
        if path.is_dir():
            hidden = path.name.startswith('.') and path.name != '.ci'
            if not hidden and path.name not in BUILT and not path.name.endswith('.egg-info'):
                yield from files(path)
        elif path.suffix in TEXT or path.name in LICENSED_NAMES:
            yield path


def licence_of(text: str) -> list:
    """Return the comment that a file starts with, without its comment signs."""
    lines = text.removeprefix('#!/usr/bin/env bash\n').splitlines()[:13]
    return [re.sub(r'^(#|//) ?', '', line) for line in lines]


def run_linter(name: str, root: Path) -> subprocess.CompletedProcess:
    """Run a linter with its section of setup.cfg over all Python files."""
    pytest.importorskip(name, reason=f'{name} is not installed')
    modules = [str(path) for path in files(root) if path.suffix == '.py']
    return subprocess.run(
        [sys.executable, '-m', name, *modules], cwd=root, capture_output=True, text=True)


@pytest.mark.parametrize('linter', ['flake8', 'pydocstyle'])
def test_the_linter_finds_nothing(repository, linter):
    """The Python files keep PEP 8 and PEP 257 as ament reads them."""
    result = run_linter(linter, repository)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_source_file_starts_with_the_licence(repository):
    """All source files start with the same thirteen lines."""
    expected = licence_of((repository / 'setup.py').read_text(encoding='utf-8'))
    assert expected[0].endswith('tinychat_ros developers')
    assert 'apache.org/licenses/LICENSE-2.0' in expected[6]
    without = [
        str(path) for path in files(repository)
        if path.suffix in LICENSED or path.name in LICENSED_NAMES
        if licence_of(path.read_text(encoding='utf-8')) != expected]
    assert without == []


def test_every_line_fits_in_99_columns(repository):
    """The sources that flake8 does not read keep its limit too."""
    long_lines = [
        f'{path}:{number}' for path in files(repository) if path.suffix in LICENSED - {'.py'}
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1)
        if len(line) > 99]
    assert long_lines == []


def test_no_file_names_a_path_of_one_machine(repository):
    """The sources hold on every machine."""
    found = [
        f'{path}:{number}: {line.strip()}' for path in files(repository)
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1)
        if MACHINE_PATH.search(line)]
    assert found == []


@pytest.mark.parametrize('line, named', [
    ('see /home/' + 'ann/model', True),
    ("open('/tmp/" + "x')", True),
    ('source /opt/ros/jazzy/setup.bash', False),
    ('https://example.com/home/page', False),
    ('../shared/work/file', False),
])
def test_a_path_of_one_machine_is_told_from_others(line, named):
    """The pattern above finds what it should, and only that."""
    assert bool(MACHINE_PATH.search(line)) == named


@pytest.mark.parametrize('path', ['package.xml', 'tinychat_msgs/package.xml'])
def test_the_package_manifest_is_well_formed(repository, path):
    """It parses, and it is of format 3."""
    manifest = ElementTree.parse(repository / path).getroot()
    assert (manifest.tag, manifest.get('format')) == ('package', '3')


def test_the_files_that_are_checked_are_all_there(repository):
    """The walk above reaches every folder."""
    found = {path.relative_to(repository).as_posix() for path in files(repository)}
    assert {'.ci/run', 'Makefile', 'csrc/bindings.cpp', 'launch/chat.launch.py', 'setup.py',
            'test/test_style.py', 'tinychat_msgs/CMakeLists.txt', 'tinychat_msgs/msg/Prompt.msg',
            'tinychat_ros/errors.py'} <= found
