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
"""Requests that show images: prompts of transformers, prefixes kept, and what is refused."""

from dataclasses import replace

import pytest
from tiny_llava import (
    IMAGE_TOKEN, IMAGE_TOKEN_ID, IMAGE_TOKENS, LLAVA_TEMPLATE, random_image, write_llava_model)
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tinychat_ros.engine import vision
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.graph_runner import make_runner
from tinychat_ros.engine.image_processor import FittedImage
from tinychat_ros.engine.model_runner import ModelRunner
from tinychat_ros.engine.request import FinishReason, Message, Request
from tinychat_ros.errors import (
    CheckpointError, ImageError, ModelCannotSeeError, PromptTooLongError, TokenizerError)

_PLAIN = ('{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: {{ m.content }} '
          '{% endfor %}ASSISTANT:')


@pytest.fixture(scope='module')
def model_path(tmp_path_factory):
    return write_llava_model(tmp_path_factory.mktemp('llava'))


@pytest.fixture
def load(model_path):
    """Return a function that loads an engine, and counts in ``looks`` how often it looks."""
    def load(path=model_path, **options):
        engine = Engine.load(path, **{'device': 'cpu', 'dtype': 'float32', **options})
        tower = engine._vision._tower
        features, engine.looks = tower.features, 0

        def counted(pixel_values, interrupted):
            engine.looks += 1
            return features(pixel_values, interrupted)

        tower.features = counted
        return engine
    return load


def ask(engine, text='What is it?', **fields):
    """Return the result of a request of a few tokens."""
    request = Request(text=text, **{'max_new_tokens': 6, **fields})
    return list(engine.generate(request))[-1].result


def expected_tokens(path, messages, images):
    """Return (prompt's length, tokens) of transformers, from the messages to the answer."""
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(path),
        tokenizer=AutoTokenizer.from_pretrained(path), patch_size=4, num_additional_image_tokens=1,
        vision_feature_select_strategy='default', chat_template=LLAVA_TEMPLATE)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=[image.pixels.numpy() for image in images] or None, text=text,
                       return_tensors='pt')
    model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    length = inputs['input_ids'].shape[1]
    return length, ids[length:].tolist()


def said(role, text, image=False):
    """Return a message as transformers takes it."""
    parts = [{'type': 'image'}] * image
    return {'role': role, 'content': [*parts, {'type': 'text', 'text': text}]}


@pytest.mark.parametrize('runner', [make_runner, ModelRunner])
@pytest.mark.parametrize('chunk', [256, 7, 1])
def test_greedy_tokens_are_those_that_transformers_generates(
        load, model_path, chunk, runner, monkeypatch):
    monkeypatch.setattr('tinychat_ros.engine.engine.make_runner', runner)
    image = random_image(3)
    result = ask(load(prefill_chunk=chunk), image=image)
    expected = expected_tokens(model_path, [said('user', 'What is it?', True)], [image])
    assert (result.prompt_tokens, list(result.token_ids)) == expected


def test_a_conversation_with_two_images_is_that_of_transformers(load, model_path):
    images = [random_image(1), random_image(2)]
    history = (Message('user', 'One', images[0]), Message('assistant', 'Yes'))
    result = ask(load(), 'Two', messages=history, image=images[1])
    expected = expected_tokens(model_path, [
        said('user', 'One', True), said('assistant', 'Yes'), said('user', 'Two', True)], images)
    assert (result.prompt_tokens, list(result.token_ids)) == expected


def test_a_model_that_sees_answers_text_alone_as_well(load, model_path):
    engine = load()
    expected = expected_tokens(model_path, [said('user', 'What is it?')], [])
    result = ask(engine)
    assert (result.prompt_tokens, list(result.token_ids)) == expected
    assert engine.info.sees and engine.looks == 0


def test_what_is_shown_decides_the_answer(load):
    engine = load()
    answers = {ask(engine, image=random_image(seed)).token_ids for seed in range(4)}
    assert len(answers) == 4


def test_a_follow_up_question_looks_no_more(load):
    engine = load()
    first = ask(engine, image=random_image(), conversation_id='a')
    second = ask(engine, 'And?', conversation_id='a')
    # The bytes that a random model says are no text, which is what the history has.
    assert second.cached_tokens >= first.prompt_tokens > IMAGE_TOKENS
    assert (engine.looks, second.turn) == (1, 2)
    [conversation] = engine.conversations
    fresh = ask(load(), 'And?', messages=tuple(conversation.messages[:2]))
    assert fresh.token_ids == second.token_ids


def test_the_same_image_shares_the_prefix_and_another_does_not(load):
    engine = load(num_slots=1)
    first = ask(engine, image=random_image())
    again = ask(engine, image=random_image())
    assert (again.cached_tokens, engine.looks) == (first.prompt_tokens - 1, 1)
    other = ask(engine, image=random_image(1))
    assert (other.cached_tokens, engine.looks) == (1 + len('USER: '), 2)
    assert other.token_ids == ask(load(), image=random_image(1)).token_ids != first.token_ids


def test_a_conversation_that_lost_its_slot_looks_no_more(load):
    engine = load(num_slots=1)
    ask(engine, image=random_image(), conversation_id='a')
    ask(engine, 'Something else', conversation_id='b')
    back = ask(engine, 'And?', conversation_id='a')
    assert back.cached_tokens < IMAGE_TOKENS
    assert engine.looks == 1


def test_of_many_images_the_last_are_kept(load):
    engine = load(num_slots=1)
    for seed in range(vision._KEPT + 1):
        ask(engine, image=random_image(seed))
    ask(engine, image=random_image(1))
    assert engine.looks == vision._KEPT + 1
    ask(engine, image=random_image(0))
    assert engine.looks == vision._KEPT + 2


def test_an_answer_that_is_canceled_while_it_looks_leaves_no_prefix(load):
    engine = load()
    request = Request(text='What?', image=random_image(), conversation_id='a')
    tower = engine._vision._tower
    features = tower.features

    def canceled(pixel_values, interrupted):
        request.cancel()
        return features(pixel_values, interrupted)

    tower.features = canceled
    [chunk] = engine.generate(request)
    assert chunk.result.finish_reason == FinishReason.CANCELED
    assert engine.cached_positions == 0
    tower.features = features
    assert ask(engine, image=random_image()).token_ids == ask(
        load(), image=random_image()).token_ids


def test_a_prefill_that_gave_way_in_an_image_goes_on_there(load):
    engine, expected = load(prefill_chunk=8), ask(load(), image=random_image())
    request = Request(text='What is it?', image=random_image(), max_new_tokens=6)
    chunks = engine.generate(request)
    next(chunks)
    next(chunks)
    assert 8 < engine.cached_positions < 8 + IMAGE_TOKENS
    request.pause()
    next(chunks)
    request.resume()
    assert list(chunks)[-1].result.token_ids == expected.token_ids
    assert engine.looks == 1


def _file(folder, template):
    (folder / 'template.jinja').write_text(template)
    return str(folder / 'template.jinja')


@pytest.mark.parametrize('template', [LLAVA_TEMPLATE, _PLAIN])
@pytest.mark.parametrize('text', [IMAGE_TOKEN, f'a {IMAGE_TOKEN}{IMAGE_TOKEN}\n b', '<imag'])
def test_a_token_for_images_that_the_user_types_stays_text(load, tmp_path, text, template):
    engine = load(chat_template=_file(tmp_path, template))
    for image in (None, random_image()):
        ids = engine._chat_prompt.encode([Message('user', text, image)])
        assert ids.count(IMAGE_TOKEN_ID) == (image is not None)
        assert text in engine.tokenizer.decode(ids)
        assert ask(engine, text, image=image).completion_tokens > 0


def test_a_template_of_plain_texts_has_the_token_above_the_text(load, tmp_path):
    engine = load(chat_template=_file(tmp_path, _PLAIN))
    ids = engine._chat_prompt.encode([Message('user', 'Hi', random_image())])
    assert ids == engine.tokenizer.encode('<s>USER: <image>\nHi ASSISTANT:', special=False)
    assert ask(engine, image=random_image()).token_ids == ask(
        engine, 'USER: <image>\nWhat is it? ASSISTANT:', image=random_image(),
        raw=True).token_ids


@pytest.mark.parametrize('text, image', [
    ('no place', random_image()), ('<image> two <image>', random_image()), ('<image>', None)])
def test_a_raw_text_has_a_token_for_each_image(load, text, image):
    with pytest.raises(ImageError, match='expected a prompt with . tokens for images, got'):
        ask(load(), text, image=image, raw=True)


def test_the_tokens_of_an_image_count_as_the_prompt_s(load):
    engine = load(max_seq_len=32)
    alone = engine.count_tokens('Hi there', with_chat_template=True)
    assert ask(engine, 'Hi there').prompt_tokens == alone < 32
    with pytest.raises(PromptTooLongError) as caught:
        ask(engine, 'Hi there', image=random_image())
    assert caught.value.prompt_tokens == alone + IMAGE_TOKENS + len('\n')


@pytest.mark.parametrize('fields', [
    {'image': random_image(0, 600, 800)},
    {'messages': (Message('user', 'Look', random_image(0, 600, 800)),)}])
def test_a_history_keeps_what_the_model_sees_of_an_image(load, fields):
    engine = load()
    ask(engine, conversation_id='a', **fields)
    image = engine.conversations[0].messages[0].image
    assert isinstance(image, FittedImage) and image.pixels.shape == (12, 12, 3)


def test_an_image_needs_no_text_of_its_own(load):
    history = (Message('user', 'Say what I show.'), Message('assistant', 'Yes'))
    shown = ask(load(), '', messages=history, image=random_image(), conversation_id='a')
    assert shown.prompt_tokens > IMAGE_TOKENS


@pytest.mark.parametrize('fields', [
    {'image': random_image()}, {'messages': (Message('user', 'Hi', random_image()),)}])
def test_an_image_is_refused_by_a_model_that_takes_text_alone(make_engine, fields):
    engine = make_engine()
    assert not engine.info.sees
    with pytest.raises(ModelCannotSeeError, match='takes text alone, got one'):
        ask(engine, 'Hi', **fields)
    assert ask(engine, 'Hi').text == 'Hi'


def test_a_penalty_does_not_count_images(load):
    engine = load()
    penalized = replace(engine.default_sampling, repetition_penalty=1.3)
    assert ask(engine, image=random_image(), sampling=penalized).completion_tokens == 6


def test_a_folder_that_cannot_see_is_refused_by_name(tmp_path):
    write_llava_model(tmp_path)
    (tmp_path / 'preprocessor_config.json').rename(tmp_path / 'other.json')
    with pytest.raises(CheckpointError, match='processor_config.json'):
        Engine.load(tmp_path, device='cpu')
    write_llava_model(tmp_path, image_token_index=263)
    with pytest.raises(TokenizerError, match='expected a token 263 for images'):
        Engine.load(tmp_path, device='cpu')
