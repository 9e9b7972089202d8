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
"""A chat node in a process of its own, and a client that talks to it over DDS."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
import fcntl
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Optional
import uuid

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from tinychat_msgs.action import Generate
from tinychat_msgs.msg import (
    ChatMessage, Interrupt, Prompt, Response, SamplingParams, Sentence, Status, TokenChunk)

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path('/dev/shm')

# A loaded machine is slow, and a test that waits for what does not come has failed anyway.
PATIENCE_S = 60.0

CONFIGURE = Transition.TRANSITION_CONFIGURE
ACTIVATE = Transition.TRANSITION_ACTIVATE
DEACTIVATE = Transition.TRANSITION_DEACTIVATE
CLEANUP = Transition.TRANSITION_CLEANUP
UNCONFIGURED_SHUTDOWN = Transition.TRANSITION_UNCONFIGURED_SHUTDOWN
INACTIVE_SHUTDOWN = Transition.TRANSITION_INACTIVE_SHUTDOWN


class NodeProcess:
    """
    The node `tinychat` in a namespace of its own.

    :param folder: where its log goes.
    :param fault: one of faulty_node.py; '' is none.
    :param parameters: by their ROS names; what is not named keeps its default.
    """

    def __init__(self, folder: Path, fault: str = '', **parameters: Any) -> None:
        self._program = ['-m', 'tinychat_ros.nodes.chat_node']
        if fault:
            self._program = [str(Path(__file__).with_name('faulty_node.py')), fault]
        self.namespace = f'/test_{uuid.uuid4().hex[:8]}'
        self._log = folder / f'{self.namespace[1:]}.log'
        self._parameters = parameters
        self.start()

    def start(self, *arguments: str) -> None:
        """Start it, for the first time or again."""
        self._segments = _segments()
        given = [f'{name}:={_yaml(value)}' for name, value in self._parameters.items()]
        command = [sys.executable, *self._program, '--ros-args',
                   '-r', f'__ns:={self.namespace}', *arguments]
        with open(self._log, 'a') as log:
            self._process = subprocess.Popen(
                command + [word for text in given for word in ('-p', text)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """Return all that the node printed."""
        return self._log.read_text(errors='replace')

    @property
    def running(self) -> bool:
        """Tell whether the process lives."""
        return self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for the end."""
        return self._process.wait(PATIENCE_S)

    def end(self, number: int = signal.SIGINT) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds until the process was gone."""
        begin = time.monotonic()
        self.send_signal(number)
        return self.exit_code(), time.monotonic() - begin

    def kill(self) -> None:
        """End it at once, and remove the shared memory that it leaves behind."""
        mapped = self.shared_memory()
        self._process.kill()
        self._process.wait()
        remove_left_behind(mapped)

    def shared_memory(self) -> list[Path]:
        """Return the segments that came after its start and that it uses, of whomever they are."""
        return [path for path in mapped_segments(self.pid) if path not in self._segments]

    def close(self) -> None:
        """End it, gently if it follows."""
        if not self.running:
            return
        self.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Answer:
    """Everything that came for one request."""

    chunks: list[TokenChunk] = field(default_factory=list)
    sentences: list[Sentence] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)

    @property
    def response(self) -> Response:
        """Return the only response."""
        assert len(self.responses) == 1
        return self.responses[0]

    @property
    def text(self) -> str:
        """Return the joined chunks."""
        return ''.join(chunk.text for chunk in self.chunks)

    @property
    def whole(self) -> bool:
        """Tell whether the last message of every topic is here."""
        return bool(self.responses and self.chunks and self.chunks[-1].final
                    and self.sentences and self.sentences[-1].final)

    def check(self) -> None:
        """Assert that nothing was lost: no gap, one end, and the same text on every way."""
        response = self.response
        assert [chunk.seq for chunk in self.chunks] == list(range(len(self.chunks)))
        assert [chunk.final for chunk in self.chunks] == [False] * (len(self.chunks) - 1) + [True]
        assert self.text.encode() == response.text.encode()
        assert ''.join(s.text for s in self.sentences).encode() == response.text.encode()
        assert sum(len(chunk.token_ids) for chunk in self.chunks) == response.completion_tokens
        assert self.chunks[-1].finish_reason == response.finish_reason


class Goal:
    """One goal of `~/generate`, as its client sees it."""

    def __init__(self, message: Generate.Goal, feedback: list) -> None:
        self._all_feedback = feedback
        self.message = message
        self.handle: Any = None
        self.outcome: Any = None

    @property
    def feedback(self) -> list[Generate.Feedback]:
        """
        Return the feedback that came by now.

        It is what the topic brought. An ActionClient of rclpy that lags hears of the end first,
        and drops the feedback that was still to come.
        """
        goal_id = self.handle.goal_id
        return [m.feedback for m in self._all_feedback if m.goal_id == goal_id]

    @property
    def states(self) -> list[int]:
        """Return the states that the feedback went through."""
        states = [feedback.state for feedback in self.feedback]
        return [s for i, s in enumerate(states) if i == 0 or s != states[i - 1]]

    @property
    def chunks(self) -> list[TokenChunk]:
        """Return the chunks of the feedback."""
        return [f.chunk for f in self.feedback if f.state == Generate.Feedback.DECODE]

    @property
    def whole(self) -> bool:
        """Tell whether the result and the last chunk are here."""
        return self.outcome is not None and bool(self.chunks) and self.chunks[-1].final

    @property
    def result(self) -> Generate.Result:
        """Return the result."""
        return self.outcome.result

    @property
    def status(self) -> int:
        """Return how the goal ended, a constant of action_msgs/GoalStatus."""
        return self.outcome.status


class Client:
    """
    A ROS node in this process that listens to all a chat node says, and sends it requests.

    :param process: the chat node to talk to.
    :param topics: of the outputs, the ones to subscribe to.
    """

    TOPICS = {'tokens': TokenChunk, 'text': String, 'sentences': Sentence}
    LATCHED = {'response': Response, 'status': Status}

    def __init__(self, process: NodeProcess, topics: tuple[str, ...] = (
            'tokens', 'text', 'sentences', 'response', 'status', 'diagnostics')) -> None:
        self._process = process
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node(f'client_{uuid.uuid4().hex[:8]}', context=self._context,
                                      namespace=process.namespace)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.received: dict[str, list] = {topic: [] for topic in topics}
        self._answers: dict[str, Answer] = defaultdict(Answer)
        for topic in topics:
            self._subscribe(topic)
        self.prompt = self.node.create_publisher(String, 'tinychat/prompt', 1000)
        self.request = self.node.create_publisher(Prompt, 'tinychat/request', 1000)
        self.interrupt = self.node.create_publisher(Interrupt, 'tinychat/interrupt', 10)
        self.generate = ActionClient(self.node, Generate, 'tinychat/generate')
        self._feedback: list[Generate.Impl.FeedbackMessage] = []
        self.node.create_subscription(
            Generate.Impl.FeedbackMessage, 'tinychat/generate/_action/feedback',
            self._feedback.append, 10000)

    @property
    def log(self) -> str:
        """Return all that the node printed."""
        return self._process.log

    def close(self) -> None:
        """Leave the graph; a second time does nothing."""
        if not self._context.ok():
            return
        self._executor.shutdown()
        self.generate.destroy()
        self.node.destroy_node()
        self._context.try_shutdown()

    def wait(self, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
        """Take messages until the condition holds; fail with the node's log when it never does."""
        give_up = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > give_up:
                raise AssertionError(f'waited {seconds} s; the log of the node ends with:\n'
                                     f'{self._process.log[-3000:]}')
            self._executor.spin_once(timeout_sec=0.1)

    def came(self, condition: Callable[[], bool], seconds: float = 2.0) -> bool:
        """Take messages until the condition holds or the time is over; return whether it does."""
        give_up = time.monotonic() + seconds
        while not condition() and time.monotonic() < give_up:
            self._executor.spin_once(timeout_sec=0.1)
        return condition()

    def connect(self) -> Client:
        """Wait until every way there and back works; a running node must not be busy."""
        self.wait(self.generate.server_is_ready)
        self.wait(lambda: self.request.get_subscription_count()
                  and self.prompt.get_subscription_count()
                  and self.interrupt.get_subscription_count())
        if 'tokens' in self.received:
            self._knock()
        return self

    def ask(self, text: str, **fields: Any) -> Answer:
        """Send a request and wait for all of its answer."""
        request_id = self.send(text, **fields)
        self.wait(lambda: self.answer(request_id).whole)
        return self.answer(request_id)

    def check_that_the_node_answers(self) -> None:
        """Assert that a good request is answered, and that the process lives."""
        answer = self.ask('Once', max_new_tokens=5)
        answer.check()
        assert answer.response.error_code == Response.NO_ERROR
        assert self._process.running

    def send(self, text: str, **fields: Any) -> str:
        """Send a request without waiting; return its id."""
        prompt = make_prompt(text, **fields)
        self.request.publish(prompt)
        return prompt.request_id

    def answer(self, request_id: str) -> Answer:
        """Return what has come for a request by now; it grows while messages are taken."""
        return self._answers[request_id]

    def wait_for_chunks(self, request_id: str, count: int = 3) -> None:
        """Wait until a request is in the middle of its answer."""
        self.wait(lambda: len(self.answer(request_id).chunks) >= count)

    def send_goal(self, text: str, feedback_callback: Optional[Callable] = None,
                  **fields: Any) -> Goal:
        """Send a goal and wait until it is accepted or rejected."""
        goal, accepted = self._offer(make_prompt(text, **fields), feedback_callback)
        self.wait(accepted.done)
        self._follow(goal, accepted)
        return goal

    def call(self, service_type: Any, name: str, **fields: Any) -> Any:
        """Call one of the node's services."""
        client = self.node.create_client(service_type, f'tinychat/{name}')
        try:
            self.wait(client.service_is_ready)
            future = client.call_async(service_type.Request(**fields))
            self.wait(future.done)
            return future.result()
        finally:
            self.node.destroy_client(client)

    def transit(self, transition_id: int) -> bool:
        """Ask for a lifecycle transition; return whether it succeeded."""
        return self.call(ChangeState, 'change_state',
                         transition=Transition(id=transition_id)).success

    def lifecycle_state(self) -> str:
        """Return the label of the lifecycle state."""
        return self.call(GetState, 'get_state').current_state.label

    def set_parameter(self, name: str, value: Any) -> str:
        """Set a parameter of the node; return '' or the reason why it was refused."""
        message = Parameter(name, value=value).to_parameter_msg()
        result = self.call(SetParameters, 'set_parameters', parameters=[message]).results[0]
        return '' if result.successful else result.reason

    def time_from_now(self, seconds: float) -> Time:
        """Return a time of the ROS clock, as a message."""
        return (self.node.get_clock().now() + Duration(seconds=seconds)).to_msg()

    def status(self) -> Status:
        """Return the last status."""
        self.wait(lambda: self.received['status'])
        return self.received['status'][-1]

    def diagnostics(self) -> DiagnosticStatus:
        """Wait for the next diagnostics of this node."""
        seen = len(self.received['diagnostics'])
        name = f'{self._process.namespace}/tinychat'

        def mine() -> list[DiagnosticStatus]:
            return [status for array in self.received['diagnostics'][seen:]
                    for status in array.status if status.name.startswith(name)]

        # One may have been under way when the state changed; the second is of now.
        self.wait(lambda: len(mine()) >= 2)
        return mine()[-1]

    def _offer(self, prompt: Prompt,
               feedback_callback: Optional[Callable]) -> tuple[Goal, rclpy.Future]:
        message = Generate.Goal(prompt=prompt)
        return (Goal(message, self._feedback),
                self.generate.send_goal_async(message, feedback_callback))

    def _follow(self, goal: Goal, accepted: rclpy.Future) -> None:
        goal.handle = accepted.result()
        if goal.handle.accepted:
            goal.handle.get_result_async().add_done_callback(
                lambda future: setattr(goal, 'outcome', future.result()))

    def _subscribe(self, topic: str) -> None:
        def add(message: Any) -> None:
            self.received[topic].append(message)
            if topic in parts:
                getattr(self._answers[message.request_id], parts[topic]).append(message)

        parts = {'tokens': 'chunks', 'sentences': 'sentences', 'response': 'responses'}
        if topic == 'diagnostics':
            self.node.create_subscription(DiagnosticArray, '/diagnostics', add, 10)
        elif topic in self.LATCHED:
            qos = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self.node.create_subscription(self.LATCHED[topic], f'tinychat/{topic}', add, qos)
        else:
            self.node.create_subscription(self.TOPICS[topic], f'tinychat/{topic}', add, 10000)

    def _knock(self) -> None:
        """Send requests and goals until they come back whole: each topic is discovered alone."""
        def answers() -> list[Answer]:
            return [self.answer(name) for name in sent if self.answer(name).whole]

        def answered() -> bool:
            heard = 'text' not in self.received or bool(self.received['text'])
            return any(heard or not answer.text for answer in answers())

        sent: list[str] = []
        while not answered():
            sent.append(self.send('knock', max_new_tokens=8))
            self.came(answered)
        active = answers()[-1].responses[0].error_code != Response.MODEL_MISSING
        while active and not self._knock_at_the_action():
            pass

    def _knock_at_the_action(self) -> bool:
        goal, accepted = self._offer(make_prompt('knock', max_new_tokens=8), None)
        if not self.came(accepted.done):
            return False
        self._follow(goal, accepted)
        self.wait(lambda: goal.outcome is not None)
        return self.came(lambda: goal.whole)


def make_prompt(text: str, sampling: Optional[dict[str, Any]] = None,
                messages: tuple[tuple[str, str], ...] = (), **fields: Any) -> Prompt:
    """Return a prompt with an id of its own, greedy unless told otherwise."""
    return Prompt(**{
        'text': text, 'request_id': uuid.uuid4().hex,
        'sampling': SamplingParams(**({'temperature': 0.0} if sampling is None else sampling)),
        'messages': [ChatMessage(role=role, content=content) for role, content in messages],
        **fields})


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _segments() -> set[Path]:
    return {path for path in SHARED_MEMORY.glob('fast*') if 'port' not in path.name}


def mapped_segments(pid: int) -> list[Path]:
    """Return the segments that a process uses, of whomever they are."""
    maps = Path(f'/proc/{pid}/maps').read_text()
    return [path for path in _segments() if str(path) in maps]


def left_behind(segments: list[Path]) -> list[Path]:
    """Return those that are still there although their owner, who locks them, is gone."""
    return [path for path in segments if path.exists() and _lock_is_free(Path(f'{path}_el'))]


def remove_left_behind(segments: list[Path]) -> None:
    """Remove what a killed node could not."""
    for path in left_behind(segments):
        path.unlink(missing_ok=True)
        Path(f'{path}_el').unlink(missing_ok=True)


def _lock_is_free(path: Path) -> bool:
    try:
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
