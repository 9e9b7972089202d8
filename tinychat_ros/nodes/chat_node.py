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
"""The node `tinychat`: prompts in, streamed answers out. Callbacks only, no inference."""

from __future__ import annotations

import threading
from typing import Callable, Optional, Sequence
import uuid

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_msgs.msg import String

from tinychat_ros.engine.engine import Engine, return_memory
from tinychat_ros.engine.request import check_unicode, one_line, Request
from tinychat_ros.engine.scheduler import Scheduler
from tinychat_ros.errors import ModelMissingError, TinychatError
from tinychat_ros.nodes import parameters
from tinychat_ros.nodes.answer_publisher import AnswerPublisher
from tinychat_ros.nodes.camera import Camera
from tinychat_ros.nodes.diagnostics import diagnostic_status, Statistics
from tinychat_ros.nodes.input_limits import answerable, check_bytes, check_id, check_prompt
from tinychat_ros.nodes.lifecycle import answer_impossible_transitions
from tinychat_ros.nodes.messages import (
    conversation_info, CountTokens, fill_model_info, Generate, GetModelInfo,
    Interrupt, ListConversations, Prompt, ResetConversation, Response, Status, to_request)
from tinychat_ros.nodes.process import run_process
from tinychat_ros.nodes.publishers import Publishers, TOKENS_DEPTH

# The queue answers a burst of prompts, if need be with QUEUE_FULL; DDS would drop the oldest.
_INPUT_DEPTH = 1000
_NOT_ACTIVE = 'model: expected the node to be active with a model loaded'


class ChatNode(LifecycleNode):
    """
    Serves one model over topics, services and an action; see the README for the interface.

    The engine runs in the scheduler's thread; callbacks never wait for it. Whatever arrives while
    the node is not active is answered, with an error, and not dropped.
    """

    def __init__(self) -> None:
        super().__init__('tinychat')
        self._engine: Optional[Engine] = None
        self._scheduler: Optional[Scheduler] = None
        self._lifecycle_state = 'unconfigured'
        self._problem = ''
        self._statistics = Statistics()
        self._status_lock = threading.Lock()
        self._open_goals: dict[bytes, Request] = {}
        # The callback comes first, so that it sees what the start brings, too.
        self.add_on_set_parameters_callback(self._set_parameters_callback)
        parameters.declare(self)
        self._outputs = Publishers(self)
        self._create_inputs()
        self._camera = Camera(self)
        answer_impossible_transitions(self)
        self.create_timer(parameters.value(self, 'diagnostics.period_s'),
                          self._diagnostics_callback)
        self._publish_status()

    def autostart(self) -> None:
        """Configure and activate, unless the parameter says not to; a failure is logged."""
        if not parameters.value(self, 'autostart'):
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def stop(self) -> None:
        """End every request with a result; goals have theirs after some more callbacks."""
        self._close_scheduler()
        self._entered('finalized')

    @property
    def open_goals(self) -> int:
        """Return how many goals were accepted and have no result yet."""
        return len(self._open_goals)

    # Lifecycle. rclpy turns an exception into ERROR without a word: each is caught and logged.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model; without one the node stays unconfigured and says why."""
        try:
            config = parameters.engine_config(self)
            self.get_logger().info(f'loading {config.model_path}')
            self._engine = Engine(config)
        except Exception as error:
            self._problem = f'{type(error).__name__}: {error}'
            self.get_logger().error(f'configure failed: {self._problem}')
            self._publish_status()
            return TransitionCallbackReturn.FAILURE
        self._problem = ''
        info = self._engine.info
        self.get_logger().info(
            f'loaded {info.name}: {info.parameters / 1e6:.1f} M parameters, {info.format}, on '
            f'{info.device}, {info.num_slots} conversations of {info.max_seq_len} tokens')
        return self._entered('inactive')

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to serve requests."""
        self._statistics = Statistics()
        self._scheduler = Scheduler(
            self._engine.generate, parameters.value(self, 'queue_capacity'),
            max_paused=self._engine.info.num_slots - 1,
            ageing_s=parameters.value(self, 'priority_ageing_s'))
        if self._engine.info.sees:
            self._camera.open()
        return self._entered('active')

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End running and waiting requests, each with its result."""
        self._camera.close()
        self._close_scheduler()
        return self._entered('inactive')

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give the model's memory back."""
        self._engine = None
        return_memory()
        return self._entered('unconfigured')

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End everything, from whatever state."""
        self._camera.close()
        self._close_scheduler()
        self._engine = None
        return self._entered('finalized')

    # Topics.

    def _prompt_callback(self, message: String) -> None:
        conversation = parameters.value(self, 'default_conversation')
        self._accept(Prompt(text=message.data, conversation_id=conversation), uuid.uuid4().hex)

    def _request_callback(self, prompt: Prompt) -> None:
        self._accept(prompt, uuid.uuid4().hex)

    def _interrupt_callback(self, interrupt: Interrupt) -> None:
        if self._engine is None or self._scheduler is None:
            return
        self.get_logger().info(f'interrupt: {one_line(interrupt.reason) or "no reason given"}')
        heard = interrupt.spoken_char_end if interrupt.spoken_char_end >= 0 else None
        for request in self._scheduler.begun:
            if _is_meant(interrupt, request):
                request.heard_chars = heard
                if self._scheduler.cancel(request.request_id):
                    return
        if interrupt.request_id and self._scheduler.cancel(interrupt.request_id):
            return  # it was still waiting: nothing of it was heard
        if heard is not None:
            # A voice lags behind: what it was still saying has been answered long before.
            self._engine.cut_last_answer(heard, interrupt.conversation_id, interrupt.request_id)

    # The action.

    def _goal_callback(self, goal: Generate.Goal) -> GoalResponse:
        return GoalResponse.ACCEPT if self._scheduler else GoalResponse.REJECT

    def _cancel_callback(self, goal_handle: ServerGoalHandle) -> CancelResponse:
        request = self._open_goals.get(bytes(goal_handle.goal_id.uuid))
        if request is not None and self._scheduler is not None:
            self._scheduler.cancel(request.request_id)
        return CancelResponse.ACCEPT

    async def _execute_callback(self, goal_handle: ServerGoalHandle) -> Generate.Result:
        goal_id = bytes(goal_handle.goal_id.uuid)
        ended = Future()

        def on_end(response: Response) -> None:
            ended.set_result(response)
            self.executor.wake()

        request = self._accept(goal_handle.request.prompt, goal_id.hex(), on_end,
                               goal_handle.publish_feedback)
        if request is not None:
            self._open_goals[goal_id] = request
            if goal_handle.is_cancel_requested:
                self._scheduler.cancel(request.request_id)
        response = await ended
        self._open_goals.pop(goal_id, None)
        return self._end_goal(goal_handle, response)

    def _end_goal(self, goal_handle: ServerGoalHandle, response: Response) -> Generate.Result:
        if response.finish_reason in (Response.STOP, Response.LENGTH, Response.DEADLINE):
            goal_handle.succeed()
        elif response.finish_reason == Response.CANCELED and goal_handle.is_cancel_requested:
            goal_handle.canceled()
        else:
            goal_handle.abort()
        fields = Generate.Result.get_fields_and_field_types()
        return Generate.Result(**{name: getattr(response, name) for name in fields})

    # Services.

    def _reset_conversation_callback(
            self, request: ResetConversation.Request,
            response: ResetConversation.Response) -> ResetConversation.Response:
        if self._engine is None:
            return self._refuse(response)
        try:
            check_id('conversation_id', request.conversation_id)
        except TinychatError as error:
            response.message = str(error)
            return response
        if self._scheduler is not None:
            self._scheduler.cancel(conversation_id=request.conversation_id)
        if not request.conversation_id:
            self._engine.reset_all_conversations()
            response.success = True
            return response
        response.success = self._engine.reset_conversation(request.conversation_id)
        if not response.success:
            response.message = (f'conversation_id: expected one that is remembered, '
                                f'got {request.conversation_id!r}')
        return response

    def _list_conversations_callback(
            self, request: ListConversations.Request,
            response: ListConversations.Response) -> ListConversations.Response:
        if self._engine is None:
            return self._refuse(response)
        response.conversations = [
            conversation_info(c) for c in reversed(self._engine.conversations)]
        response.success = True
        return response

    def _count_tokens_callback(self, request: CountTokens.Request,
                               response: CountTokens.Response) -> CountTokens.Response:
        if self._engine is None:
            return self._refuse(response)
        try:
            check_bytes('text', request.text, parameters.value(self, 'max_text_bytes'))
            check_unicode('text', request.text)
            response.tokens = self._engine.count_tokens(request.text, request.with_chat_template)
        except TinychatError as error:
            response.message = str(error)
            return response
        response.max_seq_len = self._engine.info.max_seq_len
        response.success = True
        return response

    def _get_model_info_callback(self, request: GetModelInfo.Request,
                                 response: GetModelInfo.Response) -> GetModelInfo.Response:
        if self._engine is None:
            return self._refuse(response)
        return fill_model_info(response, self._engine.info)

    # Parameters and diagnostics.

    def _set_parameters_callback(self, changed: Sequence[Parameter]):
        return parameters.check(changed, configured=self._engine is not None)

    def _diagnostics_callback(self) -> None:
        status = diagnostic_status(
            self.get_fully_qualified_name(), self._lifecycle_state, self._problem, self._engine,
            self._scheduler, self._statistics, lambda name: parameters.value(self, name))
        self._outputs.diagnostics.publish(
            DiagnosticArray(header=self._outputs.header(), status=[status]))

    # What the callbacks share.

    def _create_inputs(self) -> None:
        self.create_subscription(String, '~/prompt', self._prompt_callback, _INPUT_DEPTH)
        self.create_subscription(Prompt, '~/request', self._request_callback, _INPUT_DEPTH)
        self.create_subscription(Interrupt, '~/interrupt', self._interrupt_callback, 10)
        # Of ten, the default, a goal or its acceptance may be lost when several clients send many.
        services = QoSProfile(depth=_INPUT_DEPTH)
        self._action_server = ActionServer(
            self, Generate, '~/generate', execute_callback=self._execute_callback,
            goal_callback=self._goal_callback, cancel_callback=self._cancel_callback,
            goal_service_qos_profile=services, cancel_service_qos_profile=services,
            result_service_qos_profile=services,
            feedback_pub_qos_profile=QoSProfile(depth=TOKENS_DEPTH),
            result_timeout=parameters.value(self, 'action.result_timeout_s'))
        for service_type, name, callback in (
                (ResetConversation, '~/reset_conversation', self._reset_conversation_callback),
                (ListConversations, '~/list_conversations', self._list_conversations_callback),
                (CountTokens, '~/count_tokens', self._count_tokens_callback),
                (GetModelInfo, '~/get_model_info', self._get_model_info_callback)):
            self.create_service(service_type, name, callback)

    def _accept(self, prompt: Prompt, request_id: str,
                on_end: Optional[Callable[[Response], None]] = None,
                on_feedback: Optional[Callable[[Generate.Feedback], None]] = None,
                ) -> Optional[Request]:
        """Put a prompt into the queue; when it cannot be served, answer with the reason."""
        def ended(response: Response) -> None:
            with self._status_lock:
                self._statistics.count(response, listener.chunks, listener.coalesced)
            self._publish_status()
            if on_end:
                on_end(response)

        request_id = answerable(prompt.request_id or request_id)
        listener = AnswerPublisher(
            request_id, answerable(prompt.conversation_id),
            self._engine.info.model_hash if self._engine else '', self._outputs,
            parameters.value(self, 'stream.flush_ms') / 1000, self._publish_status, ended,
            on_feedback)
        scheduler = self._scheduler
        try:
            request = self._to_request(prompt, request_id)
            scheduler.submit(request, listener)
        except Exception as error:
            self.get_logger().warning(f'request {request_id}: {one_line(error)}')
            listener.on_error(error)
            return None
        # What is served at once says so itself, in its own thread, which this would only delay.
        if scheduler.running not in (None, request):
            self._publish_status()
        return request

    def _to_request(self, prompt: Prompt, request_id: str) -> Request:
        if self._scheduler is None:
            raise ModelMissingError(f'{_NOT_ACTIVE}, got {self._problem or self._lifecycle_state}')
        # Before anything else: an error would end the chunks of the other under this id.
        self._scheduler.check_id(request_id)
        check_prompt(prompt, parameters.value(self, 'max_text_bytes'))
        request = to_request(
            prompt, request_id, parameters.value(self, 'max_new_tokens'),
            parameters.sampling(self), self._engine.default_sampling,
            now=self.get_clock().now().nanoseconds * 1e-9)
        # An image takes longer to decode than all else here, and interrupts wait for this thread.
        self._scheduler.check(request)
        request.image = self._camera.image_for(prompt)
        return request

    def _refuse(self, response):
        response.message = f'{_NOT_ACTIVE}, got {self._problem or self._lifecycle_state}'
        return response

    def _close_scheduler(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.close()

    def _entered(self, lifecycle_state: str) -> TransitionCallbackReturn:
        self._lifecycle_state = lifecycle_state
        self._publish_status()
        return TransitionCallbackReturn.SUCCESS

    def _publish_status(self) -> None:
        # Two threads call this. An older state that is published last would stay on the topic.
        with self._status_lock:
            self._outputs.status(self._status())

    def _status(self) -> Status:
        scheduler, info = self._scheduler, self._engine.info if self._engine else None
        running = scheduler.running if scheduler else None
        return Status(
            state=Status.BUSY if running else Status.IDLE, lifecycle_state=self._lifecycle_state,
            model=info.name if info else '', device=info.device if info else '',
            active_request_id=running.request_id if running else '',
            active_conversation_id=running.conversation_id if running else '',
            queue_length=scheduler.queue_length if scheduler else 0,
            queue_capacity=parameters.value(self, 'queue_capacity'),
            requests_served=self._statistics.served, requests_failed=self._statistics.failed)


def _is_meant(interrupt: Interrupt, request: Request) -> bool:
    return (interrupt.request_id in ('', request.request_id)
            and interrupt.conversation_id in ('', request.conversation_id))


def main() -> None:
    """Run the node as a process of its own."""
    run_process(ChatNode)


if __name__ == '__main__':
    main()
