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
"""
Prints side by side how fast a CPU runs a shape: by our kernels, llama.cpp and other libraries.

The contenders take turns, and each round says how fast the memory was and what else ran.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
import json
from pathlib import Path
import sys
from tempfile import TemporaryDirectory
from typing import Any, Optional, Sequence

from benchmarks import int4_products, random_gguf, whole_models
from benchmarks.comparison import matrices, Matrix
from benchmarks.conditions import lines
from benchmarks.int4_contenders import CONTENDERS, why_absent
from benchmarks.llama_bench import LlamaBench
from benchmarks.llama_in_process import LlamaCppPython
from benchmarks.whole_models import Contender
import torch

from tinychat_ros.bench.shapes import LLAMA_SHAPES, shape_config
from tinychat_ros.checkpoint.writer import save_json
from tinychat_ros.commands.common import FAILED, print_error
from tinychat_ros.errors import ConfigError, TinychatError
from tinychat_ros.kernels import extension

LLAMA_CPP = 'llama.cpp'
_PACKAGES = ('torch', 'llama-cpp-python', 'onnxruntime', 'openvino')
_SQUARE = Matrix('square', 4096, 4096, 1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """
    Measure, print the tables and return the document.

    :raises TinychatError: there are no kernels, or a program that was named cannot be run.
    """
    if extension.load() is None:
        raise ConfigError(extension.why_absent())
    document = {'shape': args.shape, 'threads': args.threads,
                'cpu_isas': extension.load().cpu_isas(), 'versions': _versions(), 'left_out': {}}
    _run_models(args, document)
    _run_products(args, document)
    return document


def _versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _run_models(args: argparse.Namespace, document: dict[str, Any]) -> None:
    contenders = [whole_models.ours(args.shape, args.threads)]
    with TemporaryDirectory() as folder:
        try:
            contenders += _llamas(args, Path(args.gguf_folder or folder))
        except ImportError as error:
            document['left_out'][LLAMA_CPP] = str(error)
        found, rounds = whole_models.measure(contenders, args.threads, args.rounds)
        document['models'] = whole_models.summary(found)
        document['model_rounds'] = [asdict(each) for each in rounds]
        _print(*whole_models.tables(document['models']), *lines(rounds))
        if args.competitor:
            fastest = whole_models.best(found[whole_models.DECODE])
            document['competitor'], rounds = whole_models.beside_competitor(
                fastest, args.threads, args.rounds)
            document['competitor_rounds'] = [asdict(each) for each in rounds]
            _print(*whole_models.competitor_table(document['competitor']), *lines(rounds))


def _llamas(args: argparse.Namespace, folder: Path) -> list[Contender]:
    """
    Write the models for llama.cpp and return its contenders.

    :raises ImportError: a package is missing.
    """
    peers = dict(map(_named, args.llama_bench)) or {LLAMA_CPP: LlamaCppPython()}
    ggufs = {name: folder / f'{args.shape}-{name}.gguf' for name in random_gguf.QUANTIZATIONS}
    for name, path in ggufs.items():
        random_gguf.write(path, shape_config(args.shape), name)
    return [contender for label, peer in peers.items()
            for contender in whole_models.theirs(label, peer, ggufs)]


def _named(program: str) -> tuple[str, LlamaBench]:
    label, _, path = program.rpartition('=')
    return label or LLAMA_CPP, LlamaBench(path)


def _run_products(args: argparse.Namespace, document: dict[str, Any]) -> None:
    torch.set_num_threads(args.threads)
    absent = {name: why_absent(name) for name in CONTENDERS}
    document['left_out'].update((name, reason) for name, reason in absent.items() if reason)
    contenders = [name for name in CONTENDERS if not absent[name]]
    # The LM head is not 4 bits.
    linears = [*matrices(shape_config(args.shape))[:-1], _SQUARE]
    rows = [row for matrix in linears
            for row in int4_products.measure(matrix, contenders, args.threads, args.rounds)]
    document['products'] = [asdict(row) for row in rows]
    _print(*int4_products.table(rows))


def _print(*text: str) -> None:
    print(*text, '', sep='\n', flush=True)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print tables and one JSON document; return 0, or 1 when that failed."""
    parser = _parser()
    args = parser.parse_args(argv)
    if min(args.threads, args.rounds) < 1:
        parser.error('--threads and --rounds: expected 1 or more')
    try:
        document = run(args)
        if args.out:
            save_json(Path(args.out), document)
    except TinychatError as error:
        print_error(error)
        return FAILED
    print(json.dumps(document))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.cpu_peers', description=__doc__)
    parser.add_argument('--shape', default='tinyllama-1.1b', choices=LLAMA_SHAPES)
    parser.add_argument('--threads', type=int, default=1, metavar='N')
    parser.add_argument('--rounds', type=int, default=3, metavar='N')
    parser.add_argument('--llama-bench', action='append', default=[], metavar='[LABEL=]PATH',
                        help="a build of llama.cpp's program of that name, or of ik_llama.cpp's; "
                        'may be given several times (default: the package llama-cpp-python)')
    parser.add_argument('--gguf-folder', metavar='DIR', help='where the models for llama.cpp go, '
                        'and stay (default: a temporary one)')
    parser.add_argument('--competitor', action='store_true',
                        help='decode once more beside a process that keeps a core busy')
    parser.add_argument('--out', metavar='FILE', help='write the document there too')
    return parser


if __name__ == '__main__':
    sys.exit(main())
