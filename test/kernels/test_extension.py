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
"""The compiled module is found, or its absence is explained."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tinychat_ros.kernels import extension
from tinychat_ros.kernels.packing import LAYOUT_VERSION


@pytest.fixture(autouse=True)
def nothing_found_yet():
    caches = extension._find, extension._why_not_on_gpu
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def put_in_place(monkeypatch, module):
    monkeypatch.setitem(sys.modules, 'tinychat_kernels', module)


def built_for(layout_version):
    return SimpleNamespace(__file__='some/where.so',
                           build_info=lambda: {'layout_version': layout_version})


def test_a_module_of_this_layout_is_loaded(monkeypatch):
    module = built_for(LAYOUT_VERSION)
    put_in_place(monkeypatch, module)
    assert extension.load() is module
    assert extension.why_absent() == ''


def test_an_absent_module_is_explained_with_how_to_build_it(monkeypatch):
    put_in_place(monkeypatch, None)
    assert extension.load() is None
    assert extension.why_absent().startswith('tinychat_kernels: ModuleNotFoundError: ')
    assert 'setup.py build_ext --inplace' in extension.why_absent()


def test_a_module_of_another_layout_is_refused_with_both_versions(monkeypatch):
    put_in_place(monkeypatch, built_for(LAYOUT_VERSION + 1))
    assert extension.load() is None
    assert f'expected weight layout {LAYOUT_VERSION}' in extension.why_absent()
    assert f'some/where.so was built for {LAYOUT_VERSION + 1}' in extension.why_absent()


def test_the_reason_is_one_line_whatever_the_module_raises(monkeypatch):
    def build_info():
        raise RuntimeError('first line\n  second line')
    put_in_place(monkeypatch, SimpleNamespace(build_info=build_info))
    assert extension.load() is None
    assert 'RuntimeError: first line second line' in extension.why_absent()
    assert '\n' not in extension.why_absent()


def built_with(problem=None):
    info = {'layout_version': LAYOUT_VERSION, 'cuda': problem is not None,
            'cuda_architectures': '87;90'}
    return SimpleNamespace(__file__='some/where.so', build_info=lambda: info,
                           device_problem=lambda: problem)


def test_a_gpu_has_kernels_where_the_module_runs_on_it(monkeypatch):
    module = built_with(problem='')
    put_in_place(monkeypatch, module)
    assert extension.cuda(torch.device('cuda')) is module
    assert extension.why_no_cuda(torch.device('cuda')) == ''


@pytest.mark.parametrize('module, device, reason', [
    (built_with(problem=''), 'cpu', 'no kernel for cpu'),
    (None, 'cuda', 'tinychat_kernels: ModuleNotFoundError'),
    (built_with(), 'cuda', 'tinychat_kernels: built without nvcc'),
    (built_with('no kernel image'), 'cuda',
     'tinychat_kernels: built for 87;90, and on this GPU: no kernel image; build anew'),
])
def test_why_there_are_no_cuda_kernels_is_said(monkeypatch, module, device, reason):
    put_in_place(monkeypatch, module)
    assert extension.cuda(torch.device(device)) is None
    assert extension.why_no_cuda(torch.device(device)).startswith(reason)
