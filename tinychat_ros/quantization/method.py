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
"""The methods by name, and the choices that they are made of."""

from __future__ import annotations

from dataclasses import dataclass

from tinychat_ros.errors import ConfigError

INPUTS = ('original', 'quantized', 'corrected')


@dataclass(frozen=True)
class Method:
    """
    How a block's weights become codes.

    :param scales: search a scale of each input channel (AWQ).
    :param clip: search where to cut each group's range (AWQ).
    :param clip_all: cut the range of the query and key projections too.
    :param inputs: which inputs a block sees while it is quantized. ``original``: those of the
        original model; ``quantized``: those that the quantized blocks before it give;
        ``corrected``: these as well, and the weights are first moved to the least squares solution
        that gives the original model's outputs for them.
    :param feedback: round with error feedback (GPTQ) instead of to the nearest.
    :param act_order: with feedback, round the columns of the largest inputs first.
    :param alpha_one: try alpha = 1.
    :param weight_magnitude: try scales that also divide by the weights' magnitude.
    """

    scales: bool = False
    clip: bool = False
    clip_all: bool = False
    inputs: str = 'original'
    feedback: bool = False
    act_order: bool = False
    alpha_one: bool = False
    weight_magnitude: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out."""
        if self.inputs not in INPUTS:
            raise ConfigError(f"inputs: expected one of {', '.join(INPUTS)}, got {self.inputs!r}")
        for choice, needed in (('act_order', 'feedback'), ('clip_all', 'clip'),
                               ('alpha_one', 'scales'), ('weight_magnitude', 'scales')):
            if getattr(self, choice) and not getattr(self, needed):
                raise ConfigError(f'{choice}: expected {needed} with it, which is off')
        if self.inputs != 'original' and not self.calibrated:
            raise ConfigError(f'inputs: expected a method that reads them, got {self.inputs} with '
                              'plain rounding')

    @property
    def calibrated(self) -> bool:
        """Say whether activations decide anything."""
        return self.scales or self.clip or self.feedback


METHODS = {
    'rtn': Method(),
    'gptq': Method(inputs='quantized', feedback=True),
    'awq': Method(scales=True, clip=True, inputs='corrected', feedback=True, act_order=True),
    # Lin et al. (MLSys 2024), without what this project adds.
    'awq-paper': Method(scales=True, clip=True),
}
