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
"""The image that a prompt asks for is shown, or the answer says by name why it is not."""

from io import BytesIO
from types import SimpleNamespace

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from node_process import ACTIVATE, DEACTIVATE
from PIL import Image as pillow
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image as RawImage
from std_msgs.msg import Header
from tiny_llava import IMAGE_TOKENS, random_image, write_llava_model
import torch

from tinychat_msgs.msg import Prompt, Response
from tinychat_msgs.srv import GetModelInfo
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.image import Image
from tinychat_ros.engine.request import Request
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import (
    ImageCorruptError, ImageMissingError, ImageStaleError, ImageUnsupportedError,
    InvalidRequestError, ModelCannotSeeError)
from tinychat_ros.nodes.camera import Camera

NEWEST = Prompt(image=Prompt.NEWEST_IMAGE)
_TOKENS = 12


def to_time(seconds):
    """Return a time message."""
    return Time(sec=int(seconds), nanosec=round(seconds % 1 * 1e9))


def at(seconds):
    """Return a prompt that asks for the image at a stamp."""
    return Prompt(image=Prompt.IMAGE_AT_STAMP, image_stamp=to_time(seconds))


def raw(stamp, pixels=((9, 8, 7),), encoding='rgb8', padding=0, **fields):
    """Return an image of one row; of pixels with several channels, or of numbers."""
    row = bytes(v for pixel in pixels for v in (pixel if isinstance(pixel, tuple) else (pixel,)))
    return RawImage(**{
        'header': Header(stamp=to_time(stamp)), 'width': len(pixels), 'height': 1,
        'encoding': encoding, 'step': len(row) + padding, 'data': row + bytes(padding), **fields})


def compressed(stamp, kind='PNG', size=(3, 2), color=(9, 8, 7), cut=None):
    """Return a compressed image of one color."""
    file = BytesIO()
    pillow.new('RGB', size, color).save(file, kind)
    return CompressedImage(header=Header(stamp=to_time(stamp)), format=kind.lower(),
                           data=file.getvalue()[:cut])


class FakeNode:
    """
    A node with a clock and parameters that a test sets.

    :param now: in seconds.
    """

    def __init__(self, now=100.0):
        self.now = now
        self.parameters = {'image.max_age_s': 5.0, 'image.history_mb': 1}
        self.topics = []

    def get_clock(self):
        """Return what tells the time."""
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=round(self.now * 1e9)))

    def get_parameter(self, name):
        """Return what holds the value."""
        return SimpleNamespace(value=self.parameters[name])

    def create_subscription(self, kind, topic, callback, qos):
        """Note the topic."""
        assert (qos.depth, qos.reliability) == (1, ReliabilityPolicy.BEST_EFFORT)
        self.topics.append(topic)
        return SimpleNamespace(topic_name=topic)

    def destroy_subscription(self, subscription):
        """Forget the topic."""
        self.topics.remove(subscription.topic_name)


@pytest.fixture
def node():
    """Return a node at the time of 100 seconds."""
    return FakeNode()


@pytest.fixture
def camera(node):
    """Return an open camera of the node."""
    camera = Camera(node)
    camera.open()
    return camera


def seen(camera, prompt=NEWEST):
    """Return the pixels of the image that a prompt is shown, row by row."""
    return camera.image_for(prompt).pixels.tolist()


@pytest.mark.parametrize('encoding, pixels, expected', [
    ('rgb8', [(1, 2, 3), (4, 5, 6)], [[1, 2, 3], [4, 5, 6]]),
    ('bgr8', [(1, 2, 3), (4, 5, 6)], [[3, 2, 1], [6, 5, 4]]),
    ('mono8', [7, 8, 9], [[7, 7, 7], [8, 8, 8], [9, 9, 9]])])
@pytest.mark.parametrize('padding', [0, 5])
def test_each_encoding_becomes_red_green_and_blue(camera, encoding, pixels, expected, padding):
    message = raw(99, pixels, encoding, padding)
    camera.keep(message)
    assert seen(camera) == [expected]
    message.height, message.data = 2, message.data * 2
    assert seen(camera) == [expected] * 2


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_a_compressed_image_is_decoded(camera, kind):
    camera.keep(compressed(99, kind, color=(90, 90, 90)))
    assert seen(camera) == [[[90, 90, 90]] * 3] * 2


@pytest.mark.parametrize('fields, error, message', [
    ({'encoding': '32FC1'}, ImageUnsupportedError,
     "image.encoding: expected one of rgb8, bgr8, mono8, got '32FC1'"),
    ({'encoding': ''}, ImageUnsupportedError, "got ''"),
    ({'encoding': 'a\nb' * 10**6}, ImageUnsupportedError, r"got 'a\\nb"),
    ({'width': 0}, ImageCorruptError, 'image: expected one pixel or more, got 0 x 1'),
    ({'height': 0}, ImageCorruptError, 'image: expected one pixel or more, got 1 x 0'),
    ({'width': 2**32 - 1, 'height': 2**32 - 1}, ImageUnsupportedError,
     'image: expected at most 16777216 pixels, got 4294967295 x 4294967295'),
    ({'step': 2}, ImageCorruptError, 'image.step: expected 3 bytes or more for a row of 1 pixels'),
    ({'height': 2}, ImageCorruptError, 'image.data: expected 6 bytes for 2 rows of 3, got 3'),
    ({'step': 2**32 - 1}, ImageCorruptError, 'image.data: expected 4294967295 bytes'),
    ({'data': b''}, ImageCorruptError, 'image.data: expected 3 bytes for 1 rows of 3, got 0')])
def test_a_message_that_cannot_be_is_refused_by_its_field(camera, fields, error, message):
    camera.keep(raw(99, **fields))
    with pytest.raises(error, match=message) as raised:
        camera.image_for(NEWEST)
    assert len(str(raised.value)) < 1000


def test_a_compressed_image_that_cannot_be_decoded_is_refused_by_name(camera):
    camera.keep(compressed(99, cut=40))
    with pytest.raises(ImageCorruptError, match='expected a whole PNG file, got 40 bytes'):
        camera.image_for(NEWEST)
    camera.keep(compressed(99.5, 'GIF'))
    with pytest.raises(ImageUnsupportedError, match='expected a JPEG or PNG file'):
        camera.image_for(NEWEST)


def test_a_prompt_without_an_image_needs_no_camera(node, camera):
    camera.keep(compressed(99, cut=40))
    assert camera.image_for(Prompt()) is None
    assert Camera(node).image_for(Prompt()) is None


def test_a_choice_that_there_is_not_is_refused(camera):
    with pytest.raises(InvalidRequestError, match='image: expected 0 to 2, one of NO_IMAGE, '
                       'NEWEST_IMAGE, IMAGE_AT_STAMP, got 3'):
        camera.image_for(Prompt(image=3))


def test_the_newest_is_the_one_of_the_last_stamp_in_whatever_order_they_come(camera):
    for stamp, value in ((98, 1), (99, 2), (98.5, 3)):
        camera.keep(raw(stamp, [value], 'mono8'))
        camera.keep(compressed(stamp - 0.1))
    assert seen(camera) == [[[2, 2, 2]]]
    camera.keep(compressed(99.1))
    assert seen(camera) == [[[9, 8, 7]] * 3] * 2


def test_an_image_is_asked_for_by_its_stamp_to_the_nanosecond(camera):
    camera.keep(raw(98.25, [1], 'mono8'))
    camera.keep(raw(98.5, [2], 'mono8'))
    camera.keep(compressed(99))
    assert seen(camera, at(98.25)) == [[[1, 1, 1]]]
    assert seen(camera, at(98.5)) == [[[2, 2, 2]]]
    assert len(seen(camera, at(99))) == 2
    with pytest.raises(ImageMissingError, match='image_stamp: expected the stamp of one of the 3 '
                       'images that are kept, got 98.250000100'):
        camera.image_for(at(98.2500001))


def test_without_an_image_the_error_names_the_topics(camera):
    with pytest.raises(ImageMissingError, match='expected one on ~/image or ~/image/compressed, '
                       'got none since'):
        camera.image_for(NEWEST)


@pytest.mark.parametrize('prompt', [NEWEST, at(99)], ids=['newest', 'stamp'])
@pytest.mark.parametrize('now, age', [(104.001, '5.001'), (93.5, '-5.500')])
def test_an_image_of_too_long_ago_or_of_another_clock_is_stale(node, camera, prompt, now, age):
    camera.keep(raw(99))
    assert seen(camera, prompt)
    node.now = now
    with pytest.raises(ImageStaleError, match='image: expected one at most 5 s old by the '
                       f"node's clock, got one of {age} s"):
        camera.image_for(prompt)
    node.parameters['image.max_age_s'] = 6.0
    assert seen(camera, prompt)


def test_an_image_without_a_stamp_counts_from_its_arrival(node, camera):
    camera.keep(raw(99, [1], 'mono8'))
    camera.keep(raw(0, [2], 'mono8'))
    assert seen(camera) == [[[2, 2, 2]]]
    node.now = 106.0
    with pytest.raises(ImageStaleError, match='got one of 6.000 s'):
        camera.image_for(NEWEST)


def test_images_are_kept_as_long_as_they_fit_and_the_last_always_is(camera):
    for i in range(12):
        camera.keep(raw(99 + i / 100, [i], 'mono8', padding=200 * 1024))
    for i in range(12):
        if i < 7:
            with pytest.raises(ImageMissingError, match='one of the 5 images that are kept'):
                camera.image_for(at(99 + i / 100))
        else:
            assert seen(camera, at(99 + i / 100)) == [[[i, i, i]]]
    camera.keep(raw(99.5, [50], 'mono8', padding=2 * 2**20))
    assert seen(camera) == [[[50, 50, 50]]]
    with pytest.raises(ImageMissingError, match='one of the 1 images'):
        camera.image_for(at(99.11))


def test_a_clock_that_was_set_back_leaves_no_image_in_the_future(node, camera):
    for stamp in (98, 99, 99.5):
        camera.keep(raw(stamp, [1], 'mono8'))
    node.now = 10.1
    camera.keep(raw(10, [2], 'mono8'))
    assert seen(camera) == [[[2, 2, 2]]]


def test_a_closed_camera_listens_to_nothing_and_has_forgotten_all(node, camera):
    camera.keep(raw(99))
    camera.close()
    assert node.topics == []
    with pytest.raises(ModelCannotSeeError, match='expected NO_IMAGE, since the model takes text '
                       'alone, got NEWEST_IMAGE'):
        camera.image_for(NEWEST)
    camera.open()
    assert node.topics == ['~/image', '~/image/compressed']
    with pytest.raises(ImageMissingError):
        camera.image_for(NEWEST)


@pytest.fixture(scope='module')
def seeing_model(tmp_path_factory):
    """Return a small model of random weights that sees."""
    return write_llava_model(tmp_path_factory.mktemp('models') / 'llava')


@pytest.fixture(scope='module')
def engine(seeing_model):
    """Return an engine of this process, for the answers that are expected."""
    return Engine.load(seeing_model, device='cpu', num_threads=1)


@pytest.fixture(scope='module')
def watcher(start_node, connect, seeing_model):
    """Return a client of a node with a model that sees."""
    return connect(start_node(model=seeing_model, dtype='auto', num_threads=1))


@pytest.fixture(scope='module')
def publish(watcher):
    """Return a function that publishes an image."""
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publishers = {
        RawImage: watcher.node.create_publisher(RawImage, 'tinychat/image', qos),
        CompressedImage: watcher.node.create_publisher(
            CompressedImage, 'tinychat/image/compressed', qos)}
    return lambda message: publishers[type(message)].publish(message)


def now_of(client, ago=0.0):
    """Return the time of so many seconds ago, as the node's clock tells it."""
    return client.node.get_clock().now().nanoseconds * 1e-9 - ago


def answer_to(engine, pixels, text='What is it?'):
    """Return what the model says of an image, pixels [height, width, 3]."""
    request = Request(text=text, image=Image(pixels), sampling=SamplingParams(),
                      max_new_tokens=_TOKENS)
    *_, last = engine.generate(request)
    return last.result.text


def ask_about(client, publish, message):
    """Publish an image until the node has it, and return the answer to a prompt about it."""
    fields = {'image': Prompt.IMAGE_AT_STAMP, 'image_stamp': message.header.stamp,
              'max_new_tokens': _TOKENS}
    for _ in range(1000):
        publish(message)
        answer = client.ask('What is it?', **fields)
        answer.check()
        if answer.response.error_code != Response.IMAGE_MISSING:
            return answer.response
    raise AssertionError(f'no image came; {answer.response.error_msg}')


@pytest.mark.parametrize('kind, color', [('PNG', (9, 8, 7)), ('JPEG', (90, 90, 90))])
def test_a_question_about_a_compressed_image_is_answered(watcher, engine, publish, kind, color):
    pixels = torch.tensor(color, dtype=torch.uint8).expand(48, 64, 3).contiguous()
    message = compressed(now_of(watcher), kind, (64, 48), color)
    assert ask_about(watcher, publish, message).text == answer_to(engine, pixels)


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8'])
def test_a_question_about_a_raw_image_is_answered(watcher, engine, publish, encoding):
    sent = random_image(seed=1, height=480, width=640).pixels
    pixels = sent if encoding == 'rgb8' else sent.flip(2).contiguous()
    padded = torch.nn.functional.pad(sent.view(480, -1), (0, 64))
    message = raw(now_of(watcher), [(1, 2, 3)] * 640, encoding, height=480, padding=64,
                  data=padded.numpy().tobytes())
    assert ask_about(watcher, publish, message).text == answer_to(engine, pixels)
    newest = watcher.ask('And now?', image=Prompt.NEWEST_IMAGE, max_new_tokens=_TOKENS)
    assert newest.response.text == answer_to(engine, pixels, 'And now?')
    assert newest.response.text != answer_to(engine, pixels // 2, 'And now?')
    watcher.check_that_the_node_answers()


def test_a_second_question_about_an_image_reads_it_from_the_cache(watcher, publish):
    message = raw(now_of(watcher))
    ask_about(watcher, publish, message)
    shown = {'image': Prompt.IMAGE_AT_STAMP, 'image_stamp': message.header.stamp}
    first = watcher.ask('What is it?', conversation_id='seen', max_new_tokens=_TOKENS, **shown)
    second = watcher.ask('Where?', conversation_id='seen', max_new_tokens=_TOKENS)
    assert first.response.error_code == second.response.error_code == Response.NO_ERROR
    assert second.response.cached_tokens >= first.response.prompt_tokens > IMAGE_TOKENS


@pytest.mark.parametrize('make, code, said', [
    (lambda now: raw(now - 60), Response.IMAGE_STALE, 'ImageStaleError: image: expected one at '),
    (lambda now: compressed(now, cut=40), Response.IMAGE_CORRUPT,
     'ImageCorruptError: image: expected a whole PNG file, got 40 bytes'),
    (lambda now: raw(now, height=9), Response.IMAGE_CORRUPT,
     'ImageCorruptError: image.data: expected 27 bytes for 9 rows of 3, got 3'),
    (lambda now: compressed(now, size=(5000, 4000)), Response.IMAGE_UNSUPPORTED,
     'ImageUnsupportedError: image: expected at most 16777216 pixels, got 5000 x 4000'),
    (lambda now: raw(now, width=10**6, height=10**6), Response.IMAGE_UNSUPPORTED,
     'ImageUnsupportedError: image: expected at most 16777216 pixels, got 1000000 x 1000000'),
    (lambda now: raw(now, encoding='yuv422'), Response.IMAGE_UNSUPPORTED,
     "ImageUnsupportedError: image.encoding: expected one of rgb8, bgr8, mono8, got 'yuv422'")],
    ids=['stale', 'corrupt', 'short', 'huge', 'claims to be huge', 'encoding'])
def test_an_image_that_cannot_be_shown_is_named_and_the_node_goes_on(
        watcher, publish, make, code, said):
    message = make(now_of(watcher))
    response = ask_about(watcher, publish, message)
    assert (response.finish_reason, response.error_code) == (Response.ERROR, code)
    assert response.error_msg.startswith(said)
    goal = watcher.send_goal('What is it?', image=Prompt.IMAGE_AT_STAMP,
                             image_stamp=message.header.stamp)
    watcher.wait(lambda: goal.outcome is not None)
    assert goal.status == GoalStatus.STATUS_ABORTED
    assert (goal.result.error_code, goal.result.error_msg[:40]) == (code, said[:40])
    watcher.check_that_the_node_answers()


def test_an_image_is_missing_until_one_comes_and_after_a_new_start(watcher, publish):
    ask_about(watcher, publish, raw(now_of(watcher)))
    assert watcher.transit(DEACTIVATE) and watcher.transit(ACTIVATE)
    response = watcher.ask('What is it?', image=Prompt.NEWEST_IMAGE).response
    assert response.error_code == Response.IMAGE_MISSING
    assert '/tinychat/image or ' in response.error_msg
    assert '/tinychat/image/compressed, got none' in response.error_msg
    response = watcher.ask('What is it?', image=Prompt.IMAGE_AT_STAMP,
                           image_stamp=to_time(7.5)).response
    assert response.error_code == Response.IMAGE_MISSING
    assert 'got 7.500000000' in response.error_msg
    response = ask_about(watcher, publish, raw(now_of(watcher)))
    assert response.error_code == Response.NO_ERROR


def test_what_is_stale_is_set_while_the_node_runs(watcher, publish):
    message = raw(now_of(watcher, ago=60))
    assert watcher.set_parameter('image.max_age_s', 600.0) == ''
    assert ask_about(watcher, publish, message).error_code == Response.NO_ERROR
    assert watcher.set_parameter('image.max_age_s', 5.0) == ''
    assert ask_about(watcher, publish, message).error_code == Response.IMAGE_STALE
    assert len(watcher.set_parameter('image.max_age_s', 0.0)) > 10


def test_a_node_whose_model_sees_hears_the_camera_while_it_is_active(watcher, publish):
    def heard():
        return {watcher.node.count_subscribers(watcher.node.resolve_topic_name(topic))
                for topic in ('tinychat/image', 'tinychat/image/compressed')}

    assert watcher.call(GetModelInfo, 'get_model_info').sees
    watcher.wait(lambda: heard() == {1})
    assert watcher.transit(DEACTIVATE)
    watcher.wait(lambda: heard() == {0})
    assert watcher.transit(ACTIVATE)
    watcher.wait(lambda: heard() == {1})
    assert 'a callback failed' not in watcher.log


def test_a_node_whose_model_does_not_see_refuses_images_and_hears_no_camera(client, story_node):
    assert not client.call(GetModelInfo, 'get_model_info').sees
    for topic in ('image', 'image/compressed'):
        assert client.node.count_subscribers(f'{story_node.namespace}/tinychat/{topic}') == 0
    response = client.ask('What is it?', image=Prompt.NEWEST_IMAGE).response
    assert response.error_code == Response.INVALID_REQUEST
    assert response.error_msg == ('ModelCannotSeeError: image: expected NO_IMAGE, since the model '
                                  'takes text alone, got NEWEST_IMAGE')
    client.check_that_the_node_answers()
