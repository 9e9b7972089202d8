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
"""The node's parameters: names, defaults, ranges and units, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from rcl_interfaces.msg import (
    FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult)
from rclpy.node import Node
from rclpy.parameter import Parameter

from tinychat_ros.engine.config import EngineConfig
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import TinychatError
from tinychat_ros.nodes.input_limits import check_id

_INT_MAX = 2**31 - 1


@dataclass(frozen=True)
class Spec:
    """
    One parameter.

    :param at_load: it is read when the node is configured, and cannot change until cleanup.
    :param read_only: it cannot change after the node has started.
    :param span: lowest and highest value of a number.
    """

    name: str
    default: Any
    description: str
    at_load: bool = False
    read_only: bool = False
    span: tuple[float, float] | None = None

    def descriptor(self) -> ParameterDescriptor:
        """Return what `ros2 param describe` shows."""
        descriptor = ParameterDescriptor(description=self.description, read_only=self.read_only)
        if self.span and isinstance(self.default, float):
            low, high = self.span
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif self.span:
            low, high = self.span
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
        return descriptor


SPECS = (
    Spec('model', '', 'Checkpoint folder; empty is the embedded demo model.', at_load=True),
    Spec('device', 'auto', "'cpu', 'cuda', or 'auto': the GPU where there is one.", at_load=True),
    Spec('dtype', 'auto', "Of activations: 'float32', 'float16', 'bfloat16', or 'auto'.",
         at_load=True),
    Spec('max_seq_len', 0, 'Context per conversation [tokens]; 0 is what the model was trained '
         'for, at most 2048.', at_load=True, span=(0, _INT_MAX)),
    Spec('num_slots', 4, 'Conversations whose KV cache is kept.', at_load=True, span=(1, 1024)),
    Spec('activations', 'auto', "Of linears of 4 bits or less: 'fp16' (W4A16), 'int8' (W4A8), or "
         "'auto': int8 where that is faster, on the CPU.", at_load=True),
    Spec('kv_cache_dtype', 'auto', "Of keys and values: 'auto' is 16 bits, or float32 where dtype "
         "asks for it; 'int8' takes half.", at_load=True),
    Spec('lm_head_dtype', 'auto', "'auto' leaves the LM head as it is stored, 'int8' or 'int4' "
         'rounds it.', at_load=True),
    Spec('memory_budget_mb', 0, 'Weights and KV cache may take this [MiB]; 0 is 90 % of what is '
         'free.', at_load=True, span=(0, _INT_MAX)),
    Spec('weight_cache', '', 'Folder in which weights stay as they are packed for the CPU; empty '
         "is tinychat_ros in the user's cache folder, 'off' is none.", at_load=True),
    Spec('num_threads', 0, 'CPU threads; 0 is every core, or one for a small model.', at_load=True,
         span=(0, 1024)),
    Spec('processors', '', "That the threads which generate keep to, such as '0-3,6'; empty is "
         'all.', at_load=True),
    Spec('prefill_chunk', 256, 'Prompt tokens between two chances to cancel [tokens].',
         at_load=True, span=(1, _INT_MAX)),
    Spec('chat_template', '', "Path of a Jinja file; empty is the checkpoint's own, or a built-in "
         'one for old chat models that have none.', at_load=True),
    Spec('system_prompt', '', 'For conversations that bring none.', at_load=True),
    Spec('queue_capacity', 16, 'Requests that may wait.', at_load=True, span=(1, 10000)),
    Spec('priority_ageing_s', 1.0, 'A request that waits this long becomes more urgent by one '
         'step of its priority [s].', at_load=True, span=(0.001, 86400.0)),
    Spec('autostart', True, 'Configure and activate on start.', read_only=True),
    Spec('action.result_timeout_s', 10.0, 'How long an action result can be fetched [s].',
         read_only=True, span=(1.0, 86400.0)),
    Spec('diagnostics.period_s', 1.0, 'Time between two diagnostics [s].', read_only=True,
         span=(0.1, 3600.0)),
    Spec('diagnostics.first_token_warn_s', 5.0, 'WARN when the 95th percentile of the time to '
         'the first token is above this [s]; 0 is never.', span=(0.0, 86400.0)),
    Spec('diagnostics.first_token_error_s', 30.0, 'ERROR when the 95th percentile of the time to '
         'the first token is above this [s]; 0 is never.', span=(0.0, 86400.0)),
    Spec('diagnostics.queue_warn_percent', 80, 'WARN when more than this of queue_capacity waits '
         '[%]; 0 is never.', span=(0, 1000)),
    Spec('diagnostics.memory_warn_mb', 512, 'WARN when less memory than this is free [MiB]; 0 is '
         'never.', span=(0, _INT_MAX)),
    Spec('diagnostics.memory_error_mb', 128, 'ERROR when less memory than this is free [MiB]; 0 '
         'is never.', span=(0, _INT_MAX)),
    Spec('diagnostics.temperature_warn_c', 90.0, 'WARN when the GPU is hotter than this [C]; 0 is '
         'never.', span=(0.0, 200.0)),
    Spec('diagnostics.temperature_error_c', 99.0, 'ERROR when the GPU is hotter than this [C]; 0 '
         'is never.', span=(0.0, 200.0)),
    Spec('default_conversation', 'default', 'Conversation of the prompts on ~/prompt; empty '
         'remembers nothing.'),
    Spec('max_text_bytes', 32768, 'Of a prompt: its text, its system prompt, and its messages '
         'together may each take this [byte].', span=(1, _INT_MAX)),
    Spec('max_new_tokens', 256, 'For requests that name none [tokens].', span=(1, _INT_MAX)),
    Spec('sampling.temperature', -1.0, "0 is greedy; -1 is the checkpoint's own.",
         span=(-1.0, 100.0)),
    Spec('sampling.top_k', -1, "0 keeps all tokens; -1 is the checkpoint's own.",
         span=(-1, _INT_MAX)),
    Spec('sampling.top_p', -1.0, "1 keeps all tokens; -1 is the checkpoint's own.",
         span=(-1.0, 1.0)),
    Spec('sampling.min_p', -1.0, "0 drops no token; -1 is the checkpoint's own.",
         span=(-1.0, 1.0)),
    Spec('sampling.repetition_penalty', -1.0, "1 is none; -1 is the checkpoint's own.",
         span=(-1.0, 100.0)),
    Spec('sampling.seed', -1, 'Same seed, same tokens; -1 draws one for each request.',
         span=(-1, 2**63 - 1)),
    Spec('image.max_age_s', 5.0, 'An older image is not shown to the model [s].',
         span=(0.001, 86400.0)),
    Spec('image.history_mb', 32, 'Images that are kept, undecoded, for prompts that ask for one '
         'by its stamp [MiB].', span=(1, 65536)),
    Spec('stream.flush_ms', 30, 'Tokens are collected for at most this before they are '
         'published [ms].', span=(0, 60000)),
)
_BY_NAME = {spec.name: spec for spec in SPECS}
_SAMPLING = 'sampling.'


def declare(node: Node) -> None:
    """Declare every parameter; a value from outside its range ends the start with its reason."""
    for spec in SPECS:
        node.declare_parameter(spec.name, spec.default, spec.descriptor())


def check(parameters: Sequence[Parameter], configured: bool) -> SetParametersResult:
    """Say whether these values may be set now, and if not why; ranges were checked before."""
    for parameter in parameters:
        spec = _BY_NAME.get(parameter.name)
        if spec is None:
            continue
        if spec.at_load and configured:
            return SetParametersResult(successful=False, reason=(
                f'{spec.name}: expected the node to be unconfigured, since it is read when the '
                'model is loaded; clean up first'))
        try:
            _check_value(spec.name, parameter.value)
        except TinychatError as error:
            return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)


def _check_value(name: str, value: Any) -> None:
    if name.startswith(_SAMPLING):
        sampling_override({name: value})
    elif name == 'default_conversation':
        check_id(name, value)


def engine_config(node: Node) -> EngineConfig:
    """
    Return what the engine is to load.

    :raises ConfigError: a value is out of its range.
    """
    names = ('model', 'device', 'dtype', 'max_seq_len', 'num_slots', 'activations',
             'kv_cache_dtype', 'lm_head_dtype', 'weight_cache', 'num_threads', 'processors',
             'prefill_chunk', 'chat_template', 'system_prompt')
    return EngineConfig(memory_budget=value(node, 'memory_budget_mb') * 2**20,
                        **{name: value(node, name) for name in names})


def sampling(node: Node) -> dict[str, Any]:
    """Return the sampling parameters that are set to something else than the checkpoint's own."""
    names = (spec.name for spec in SPECS if spec.name.startswith(_SAMPLING))
    return sampling_override({name: value(node, name) for name in names})


def sampling_override(values: dict[str, Any]) -> dict[str, Any]:
    """
    Drop what is -1, 'the default', and check the rest.

    :raises InvalidRequestError: a value is out of its range.
    """
    given = {name.removeprefix(_SAMPLING): v for name, v in values.items() if v != -1}
    SamplingParams(**given)
    return given


def value(node: Node, name: str) -> Any:
    """Return a parameter's value."""
    return node.get_parameter(name).value
