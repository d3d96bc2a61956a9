import pytest

from brushup.data import load_prompts


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_rows_become_messages_and_keep_their_columns(tmp_path):
    file = write(tmp_path / "p.jsonl", '{"user_prompt": "a cat", "category": "basic"}\n\n{"user_prompt": "고양이"}\n')
    rows = load_prompts(file)
    assert rows["user_prompt"] == ["a cat", "고양이"]
    assert rows[0]["category"] == "basic"
    assert rows[0]["prompt"][-1] == {"role": "user", "content": "a cat"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"user_prompt": "a cat"}\n{"user_prompt": "a', r"p\.jsonl:2: not valid JSON"),
        ('{"prompt": "a cat"}', r"p\.jsonl:1: `user_prompt` must be .*the row has the keys prompt"),
        ('{"user_prompt": "a cat"}\n\n{"user_prompt": " "}', r"p\.jsonl:3: `user_prompt` must be a text that is not"),
        ('["a cat"]', r"p\.jsonl:1: expected a JSON object"),
        ("\n", r"p\.jsonl: the file has no prompts"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        load_prompts(write(tmp_path / "p.jsonl", text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        load_prompts(str(tmp_path / "nowhere.jsonl"))
