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
"""Chat templates: the text that transformers renders, and none of what a sandbox must refuse."""

import json

import pytest
from tiny_models import data_path
from transformers import AutoTokenizer

from tinychat_ros.engine.chat_template import ChatTemplate, find_template, read_template
from tinychat_ros.engine.request import Message
from tinychat_ros.engine.tokenizer import Tokenizer
from tinychat_ros.errors import ChatTemplateError, CheckpointError

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}\n"
    '{% for message in messages %}\n'
    "    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "        {{ raise_exception('Roles must alternate user/assistant') }}\n"
    '    {% endif %}\n'
    "    {% if message['role'] == 'user' %}\n"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() "
    "+ ' [/INST]' }}\n"
    '    {% else %}\n'
    "{{ ' ' + message['content'] + ' ' + eos_token }}\n"
    '    {% endif %}\n'
    '{% endfor %}')
TEMPLATES = {
    'llama2': LLAMA2,
    'loop controls': '{% for m in messages %}{% if m.role == "system" %}{% continue %}{% endif %}'
                     '{{ m.content }}{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}',
    'tojson': '{{ messages | tojson }}{{ messages | tojson(indent=2) }}'
              '{{ messages | tojson(ensure_ascii=True, sort_keys=True) }}'
              '{{ messages | tojson(separators=(",", ":")) }}',
    'namespace': '{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + '
                 'm.content | length %}{% endfor %}{{ ns.n }}{{ bos_token }}{{ pad_token }}',
    'none': '{{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ nothing }}'
            '{% if tools is not none %}tools{% endif %}',
    'generation prompt': '{% if add_generation_prompt %}ask{% else %}no{% endif %}',
    'macros': '{% macro say(m) %}<{{ m.role | upper }}>{{ m.content | trim }}{% endmacro %}'
              '{% for m in messages %}{{ say(m) }}{{ "\\n" if not loop.last }}{% endfor %}',
    'generation': '{% for m in messages %}{% set a = m.role %}{% if m.role == "assistant" %}'
                  '{% generation %}{% set a = "x" %}{{ a ~ m.content ~ loop.index }}'
                  '{% endgeneration %}{% endif %}{{ a }}{% endfor %}',
    'white space': '  {% for m in messages %}\n    {{- m.content }}\n  {% endfor %}\n\n  end  \n',
}
MESSAGES = {
    'one': [('user', 'Hi there')],
    'system': [('system', 'You are a robot.'), ('user', 'Hi')],
    'turns': [('user', ' Bring "it" & <go>\n'), ('assistant', 'Yes – 🦙'), ('user', 'Ça va?')],
    'long': [('system', 'S'), *[('user', 'a'), ('assistant', 'b')] * 4, ('user', 'c')],
}


@pytest.fixture(scope='module')
def qwen():
    """Return the tokenizer of transformers with the template of Qwen 2.5."""
    return AutoTokenizer.from_pretrained(data_path('tokenizers/qwen2.5'))


def _messages(pairs):
    return [Message(role, content) for role, content in pairs]


def _render(source, pairs=(('user', 'Hi'),), **special_tokens):
    return ChatTemplate(source, special_tokens).render(_messages(pairs))


def _transformers(tokenizer, pairs, source=None):
    return tokenizer.apply_chat_template(
        [{'role': role, 'content': content} for role, content in pairs], tokenize=False,
        add_generation_prompt=True, chat_template=source)


@pytest.mark.parametrize('pairs', MESSAGES.values(), ids=MESSAGES.keys())
def test_the_template_of_qwen_gives_the_text_of_transformers(pairs, qwen):
    path = data_path('tokenizers/qwen2.5')
    tokenizer = Tokenizer.load(path)
    source = find_template(path, tokenizer.config)
    text = _render(source, pairs, **tokenizer.special_tokens)
    assert text == _transformers(qwen, pairs)
    assert text.endswith('<|im_start|>assistant\n')
    assert tokenizer.encode(text, special=False) == qwen(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize('pairs', MESSAGES.values(), ids=MESSAGES.keys())
@pytest.mark.parametrize('name', TEMPLATES)
def test_other_templates_give_the_text_of_transformers(name, pairs, qwen):
    tokens = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>'}
    for token, text in tokens.items():
        setattr(qwen, token, text)
    expected = _transformers(qwen, pairs, TEMPLATES[name])
    assert _render(TEMPLATES[name], pairs, **tokens) == expected


def test_what_a_template_refuses_is_told_in_its_words():
    with pytest.raises(ChatTemplateError, match='Roles must alternate user/assistant'):
        _render(LLAMA2, [('user', 'a'), ('user', 'b')], bos_token='<s>')


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('No turns') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}")


def test_a_system_message_that_is_refused_goes_in_front_of_the_first_question():
    turns = [('user', 'Hi'), ('assistant', 'Hello'), ('user', 'So?')]
    assert _render(NO_SYSTEM, [('system', 'Be kind.'), *turns]) == (
        '<user>Be kind.\n\nHi<assistant>Hello<user>So?')
    assert _render(NO_SYSTEM, turns) == '<user>Hi<assistant>Hello<user>So?'


@pytest.mark.parametrize('roles, refusal', [
    (['system'], 'No system'), (['system', 'assistant', 'user'], 'No system'),
    (['system', 'user', 'user'], 'No turns'), (['system', 'system', 'user'], 'No system')])
def test_other_messages_that_are_refused_stay_so(roles, refusal):
    with pytest.raises(ChatTemplateError, match=refusal):
        _render(NO_SYSTEM, [(role, 'x') for role in roles])


def test_a_template_that_takes_system_messages_gets_them_even_if_it_drops_them():
    source = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    assert _render(source, [('system', 'Be kind.'), ('user', 'Hi')]) == 'Hi'


@pytest.mark.parametrize('source, expected', [
    ("{% for m in messages %}{% for p in m.content | selectattr('type', 'equalto', 'text') %}"
     '{{ p.text }};{% endfor %}{% endfor %}', 'Hi;Yes;'),
    ("{% for m in messages %}{{ m.content[0]['text'] }};{% endfor %}", 'Hi;Yes;'),
    ('{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }};'
     '{% endfor %}', 'Hi;Yes;'),
    ('{% for m in messages %}{{ m.role }};{% endfor %}', 'user;assistant;')])
def test_a_template_that_wants_lists_of_parts_gets_them(source, expected):
    assert _render(source, [('user', 'Hi'), ('assistant', 'Yes')]) == expected


@pytest.mark.parametrize('source', [
    "{{ ''.__class__.__mro__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    '{{ messages.append(1) }}', '{{ messages[0].update({"role": "x"}) }}',
    '{{ cycler.__init__.__globals__.os }}', '{{ raise_exception.__globals__["json"] }}',
    "{{ ('{0.__class__.__mro__}').format(1) }}", '{{ strftime_now.__globals__.json }}',
    '{% for i in range(999999999) %}{% endfor %}', "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('true') }}", '{{ self.__init__.__globals__.x }}'])
def test_a_template_that_reaches_out_is_refused(source):
    with pytest.raises(ChatTemplateError, match='refuses the messages'):
        _render(source)


def test_an_attribute_of_python_shows_nothing():
    assert _render("{{ ''.__class__ }}{{ messages.__class__ }}") == ''


@pytest.mark.parametrize('source', [
    '{{ 1 / 0 }}', '{{ messages[0].content.nothing.more }}', "{{ 'a' + 1 }}", '{{ [] | first.x }}',
    "{{ messages[0]['content'] | int(1).x }}", '{{ nothing() }}', "{{ [1] | tojson(indent=[]) }}",
    "{{ messages | sort(attribute='nothing.more') | join(5) + 1 }}", "{{ '%d' | format('x') }}",
    '{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', "{{ strftime_now(5) }}",
    "{{ {}['a']['b'] }}", "{{ 2 ** 'a' }}", "{{ 'a'.encode('x') }}"])
def test_a_template_that_fails_in_any_way_is_a_template_error(source):
    with pytest.raises(ChatTemplateError):
        _render(source)


@pytest.mark.parametrize('source', [
    '{% if %}', '{{ ', '{% for m in messages %}', '{{ x | no_such_filter }}', '{% endfor %}',
    '{% for a in b %}' * 30 + '{% endfor %}' * 30, '{% generation %}', 5, {'default': 'x'}, ['x'],
    b'x'])
def test_what_is_no_jinja_is_refused_when_it_is_loaded(source):
    with pytest.raises(ChatTemplateError, match='chat template: expected'):
        ChatTemplate(source, {})


def test_the_day_can_be_asked_for():
    assert len(_render("{{ strftime_now('%d %b %Y') }}").split()) == 3


def test_a_template_file_comes_before_the_config(tmp_path):
    assert find_template(tmp_path, {}) is None
    assert find_template(tmp_path, {'chat_template': 'a'}) == 'a'
    (tmp_path / 'chat_template.jinja').write_text('é', encoding='utf-8')
    assert find_template(tmp_path, {'chat_template': 'a'}) == 'é'


def test_the_template_of_an_image_model_counts_where_there_is_no_other(tmp_path):
    (tmp_path / 'chat_template.json').write_text('{"chat_template": "j"}')
    assert find_template(tmp_path, {}) == 'j'
    assert find_template(tmp_path, {'chat_template': 'a'}) == 'a'
    (tmp_path / 'chat_template.json').write_text('["j"]')
    with pytest.raises(CheckpointError, match='chat_template.json: expected a JSON object'):
        find_template(tmp_path, {})


@pytest.mark.parametrize('templates, expected', [
    ('[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]', 'd'),
    ('[{"name": "tool_use", "template": "t"}]', None), ('[]', None), ('[5, {}, []]', None),
    ('[{"name": "default"}]', None), ('[{"name": ["default"], "template": "t"}]', None)])
def test_of_a_list_of_templates_the_default_is_taken(templates, expected, tmp_path):
    assert find_template(tmp_path, {'chat_template': json.loads(templates)}) == expected


def test_a_file_that_is_not_utf_8_or_missing_is_refused_by_name(tmp_path):
    (tmp_path / 'chat_template.jinja').write_bytes(b'\xff\xfe')
    with pytest.raises(ChatTemplateError, match='chat_template.jinja: expected'):
        find_template(tmp_path, {})
    with pytest.raises(ChatTemplateError, match='nowhere.jinja: expected'):
        read_template(tmp_path / 'nowhere.jinja')
