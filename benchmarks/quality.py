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
Prints side by side how well each quantization method keeps a model's perplexity.

Each checkpoint is made and read as ``tinychat quantize`` and ``tinychat perplexity`` do.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path
import re
from statistics import median
import sys
from tempfile import TemporaryDirectory
from typing import Iterator, Optional, Sequence, Union

import torch

from tinychat_ros.checkpoint.loader import load_model, weight_bytes
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.commands.common import FAILED, print_error
from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.engine.engine import load_tokenizer
from tinychat_ros.errors import ConfigError, TinychatError
from tinychat_ros.kernels.rtn import WeightSpec
from tinychat_ros.quantization.calibration import JSON_LINES, read_texts, token_samples
from tinychat_ros.quantization.evaluate import perplexity, token_lists
from tinychat_ros.quantization.job import Job, SmoothQuant, WeightOnly
from tinychat_ros.quantization.method import Method, METHODS
from tinychat_ros.quantization.quantize import quantize_checkpoint

# In the order of the table; the first is what the others are compared to.
WEIGHT_ONLY: dict[str, Method] = {
    'rtn': METHODS['rtn'],
    'gptq': METHODS['gptq'],
    'gptq-act-order': replace(METHODS['gptq'], act_order=True),
    'awq-paper': METHODS['awq-paper'],
    'awq': METHODS['awq'],
}
SMOOTHQUANT = 'smoothquant'
# Bits of activations and LM head, for 4-bit AWQ; the others are compared to the first.
VARIANTS = ((16, 16), (8, 16), (16, 8), (16, 4), (8, 4))
_SAMPLE_LENGTH = 512


@dataclass(frozen=True)
class Row:
    """
    A line of the table.

    :param perplexities: one of each seed; a single one where no calibration decides anything.
    :param perplexity: their median.
    :param won_back: percent of what RTN loses against fp16 that is won back; median of the seeds.
    :param difference: percent to fp16 for W8A8, for a variant of W4 to the same weights with
        activations and LM head of 16 bits; median of the seeds.
    """

    model: str
    group_size: int
    method: str
    bits: int
    activation_bits: int
    head_bits: int
    perplexities: list[float]
    perplexity: float
    won_back: Optional[float] = None
    difference: Optional[float] = None


def won_back(found: float, rtn: float, fp16: float) -> float:
    """Return how much of the gap between RTN and fp16 a perplexity closes, in percent."""
    return 100 * (rtn - found) / (rtn - fp16)


class Subject:
    """A model with the texts that calibrate it and those that it is evaluated on."""

    def __init__(self, model: str, args: argparse.Namespace) -> None:
        folder, group_size = re.fullmatch(r'(.+?)(?::(-?\d+))?', model).groups()
        self.folder, self.group_size = Path(folder), int(group_size or 128)
        self._args, config = args, EngineConfig(model=folder)
        path, separate = Path(args.text), bool(args.separator)
        texts = read_texts(path, args.separator)
        if not 0 < args.holdout < len(texts):
            raise ConfigError(f'holdout: expected 1 to {len(texts) - 1}, since {path} has '
                              f'{len(texts)} texts, got {args.holdout}')
        with CheckpointReader(self.folder) as reader:
            config = config.for_model(reader.config)
            self._device, self._dtype = config.torch_device(), config.torch_dtype()
            size = weight_bytes(reader, torch.float16, self._device)
            torch.set_num_threads(config.threads(size))
            self._encode = load_tokenizer(reader).encode
            self._context = config.seq_len(reader.config.max_position_embeddings)
        self._calibration = texts[:-args.holdout]
        self._evaluation = token_lists(texts[-args.holdout:], self._encode, self._context,
                                       separate or path.suffix in JSON_LINES)

    def rows(self) -> Iterator[Row]:
        """Measure the methods that were asked for, RTN always among them."""
        fp16 = self._perplexity(self.folder)
        yield self._row('fp16', 16, 16, 16, [fp16])
        for bits in (4, 3):
            for name, method in WEIGHT_ONLY.items():
                if name not in ('rtn', *self._args.only):
                    continue
                found, *others = self._measure(
                    WeightOnly(method, WeightSpec(bits, self.group_size)),
                    VARIANTS if (name, bits) == ('awq', 4) else VARIANTS[:1])
                if name == 'rtn':
                    rtn = found[0]
                yield self._row(name, bits, 16, 16, found,
                                won_back=median(won_back(value, rtn, fp16) for value in found))
                for variant, other in zip(VARIANTS[1:], others):
                    yield self._row(name, bits, *variant, other,
                                    difference=_difference(other, found))
        if SMOOTHQUANT in self._args.only:
            [found] = self._measure(SmoothQuant(), VARIANTS[:1])
            yield self._row(SMOOTHQUANT, 8, 8, 16, found,
                            difference=_difference(found, [fp16] * len(found)))

    def _row(self, method: str, bits: int, activation_bits: int, head_bits: int,
             found: list[float], **compared: float) -> Row:
        return Row(self.folder.name, self.group_size, method, bits, activation_bits, head_bits,
                   found, median(found), **compared)

    def _measure(self, scheme: Union[WeightOnly, SmoothQuant],
                 variants: Sequence[tuple[int, int]]) -> list[list[float]]:
        """Return for each variant the perplexities of each seed."""
        found: list[list[float]] = [[] for _ in variants]
        job = Job(self.folder, Path('out'), scheme, device=self._device)
        for seed in self._args.seeds if job.calibrated else (0,):
            samples = token_samples(
                self._calibration, self._encode, self._args.samples,
                min(_SAMPLE_LENGTH, self._context), seed, bool(self._args.separator))
            with TemporaryDirectory() as folder:
                out = Path(folder) / 'out'
                quantize_checkpoint(replace(job, out=out, samples=samples))
                for variant, values in zip(variants, found):
                    values.append(self._perplexity(out, *variant))
        return found

    def _perplexity(self, folder: Path, activation_bits: int = 16, head_bits: int = 16) -> float:
        int8_activations = activation_bits == 8
        with CheckpointReader(folder) as reader:
            model, _ = load_model(reader, self._dtype, self._device, self._context,
                                  int8_activations)
        if head_bits < 16:
            model.quantize_head(f'int{head_bits}', int8_activations)
        return perplexity(model, self._evaluation, self._device).perplexity


def _difference(found: Sequence[float], to: Sequence[float]) -> float:
    return median(100 * (a / b - 1) for a, b in zip(found, to))


def _print(row: Row) -> None:
    lowest, highest = min(row.perplexities), max(row.perplexities)
    spread = f'{lowest:.4f} - {highest:.4f}' if len(row.perplexities) > 1 else ''
    compared = '' if row.won_back is None else f'{row.won_back:.1f} %'
    if row.difference is not None:
        compared = f'{row.difference:+.2f} % to {"fp16" if row.bits == 8 else "W4A16"}'
    print(f'{row.method:15} W{row.bits:<2} A{row.activation_bits:<2} H{row.head_bits:<2} '
          f'{row.perplexity:9.4f}  {spread:19} {compared:>22}', flush=True)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print a table of each model and one JSON document; return 0, or 1 when that failed."""
    args = _parser().parse_args(argv)
    document = {'text': args.text, 'holdout': args.holdout, 'samples': args.samples,
                'seeds': args.seeds, 'rows': []}
    try:
        for model in args.models:
            subject = Subject(model, args)
            print(f'{subject.folder.name}, groups of {subject.group_size}: bits of weights, '
                  'activations and LM head, median perplexity, range over the seeds, share of the '
                  'loss of rtn that is won back')
            for row in subject.rows():
                _print(row)
                document['rows'].append(asdict(row))
    except TinychatError as error:
        print_error(error)
        return FAILED
    if args.json:
        Path(args.json).write_text(f'{json.dumps(document)}\n')
    print(json.dumps(document))
    return 0


def _parser() -> argparse.ArgumentParser:
    names = (*WEIGHT_ONLY, SMOOTHQUANT)
    parser = argparse.ArgumentParser(prog='python -m benchmarks.quality', description=__doc__)
    parser.add_argument('models', nargs='+', metavar='MODEL[:GROUP_SIZE]',
                        help='checkpoint folder with plain weights (groups of 128)')
    parser.add_argument('--text', required=True, metavar='FILE',
                        help='plain text in UTF-8, or .jsonl with a "text" in each line')
    parser.add_argument('--separator', default='', metavar='S',
                        help='cut a plain file here; then each text is a sample of its own')
    parser.add_argument('--holdout', type=int, default=30, metavar='N',
                        help='evaluate on the last N texts, calibrate with those before them')
    parser.add_argument('--samples', type=int, default=128, metavar='N',
                        help='calibrate with at most N samples (default: 128)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], metavar='S',
                        help='of the order of the calibration texts; several give medians')
    parser.add_argument('--only', nargs='+', choices=names, default=names, metavar='NAME',
                        help=f"some of {', '.join(names)}; fp16 and rtn always run")
    parser.add_argument('--json', metavar='FILE', help='write the JSON document there too')
    return parser


if __name__ == '__main__':
    sys.exit(main())
