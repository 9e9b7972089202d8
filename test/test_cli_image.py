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
"""The commands chat and generate with an image."""

import io
import json

from PIL import Image as pillow
import pytest
from tiny_llava import IMAGE_TOKENS, random_image, write_llava_model

from tinychat_ros import cli


@pytest.fixture
def shown(tmp_path):
    """Return the options of a model that sees, and of an image."""
    path = tmp_path / 'image.png'
    pillow.fromarray(random_image().pixels.numpy()).save(path)
    model = write_llava_model(tmp_path / 'llava')
    return ['--model', model, '--image', path, '--device', 'cpu', '--max-new-tokens', 3, '--json']


def run(capsys, *args):
    """Return exit code, the document on stdout, and stderr."""
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err


def test_generate_shows_an_image_with_the_prompt(capsys, shown):
    code, seen, _ = run(capsys, 'generate', '--prompt', 'What?', *shown)
    blind = run(capsys, 'generate', '--prompt', 'What?', *shown[:2], *shown[4:])[1]
    assert (code, seen['prompt_tokens']) == (0, blind['prompt_tokens'] + IMAGE_TOKENS + len('\n'))


def test_chat_shows_an_image_with_the_first_of_a_conversation(capsys, shown, monkeypatch):
    monkeypatch.setattr('sys.stdin', io.StringIO('What?\nAnd?\n/reset\nWhat?\n'))
    code, document, _ = run(capsys, 'chat', *shown)
    first, second, again = document['turns']
    assert (code, again['token_ids']) == (0, first['token_ids'])
    assert again['prompt_tokens'] == first['prompt_tokens'] <= second['cached_tokens']


@pytest.mark.parametrize('content, named', [
    (None, 'No such file'), (b'GIF89a', 'expected a JPEG or PNG file')])
def test_a_file_that_is_no_image_is_named(capsys, shown, content, named):
    shown[3].unlink()
    if content:
        shown[3].write_bytes(content)
    code, _, err = run(capsys, 'generate', '--prompt', 'What?', *shown)
    assert code != 0 and named in err


def test_a_model_that_takes_text_alone_refuses_an_image(capsys, shown):
    code, _, err = run(capsys, 'generate', '--prompt', 'Hi', *shown[2:], '--model', 'demo')
    assert code == 2 and 'takes text alone' in err
