"""Which settings are masked for trackers, cards and results."""

import pytest

from brushup.config import PromptEnhancerConfig, masked


SECRET_NAMES = """token hub_token HF_TOKEN hubToken access_token refresh-token sas_token api_tokens secret
client_secret secret_key aws_secret_access_key aws_access_key_id private_key ssh_private_key access_key api_key
apikey apiKey openai_api_key X-API-Key azure_key account_key signing_key password db_password passwd pwd passphrase
auth basic_auth http_auth Authorization proxy_authorization credentials google_credentials bearer bearer_token cookie
connection_string""".split()

HARMLESS_NAMES = """max_token_length tokenizer tokenizer_name keyword keywords author authors authority monkey keys
max_tokens max_token token_limits tokens num_generations token_id eos_token_id pad_token image_token key prompt_key
sort_key turkey keyboard secretary passes bypass compass pass_rate oauth_url_path authenticate_calls
tokenize""".split()


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_secret_is_masked_at_any_depth(name):
    settings = {"rewards": ({"judge": [{name: "hush-hush", "model": "m"}]},)}
    assert masked(settings) == {"rewards": [{"judge": [{name: f"<{name.upper()}>", "model": "m"}]}]}
    assert settings["rewards"][0]["judge"][0][name] == "hush-hush"  # only the copy
    assert masked({name: None}) == {name: None}


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_what_only_sounds_like_a_secret_is_not_masked(name):
    assert masked({name: "shown"}) == {name: "shown"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hush@host:80/v1", "http://<USER:PASSWORD>@host:80/v1"),
        ("pull from postgres://me:hu@sh@db/x, then", "pull from postgres://<USER:PASSWORD>@db/x, then"),
        ("https://hush@github.com/a/b", "https://<USER:PASSWORD>@github.com/a/b"),
        ("https://h/x?api_key=hush&size=3", "https://h/x?api_key=<API_KEY>&size=3"),
        ("Bearer hush", "<TOKEN>"),
        ("Authorization: Bearer hush", "Authorization:<TOKEN>"),
        ("https://host:80/a@b?size=3#top", "https://host:80/a@b?size=3#top"),
        ("me@host.org", "me@host.org"),
        ("the bearer of bad news", "the bearer of bad news"),
    ],
)
def test_secrets_inside_a_text(text, shown):
    assert masked({"settings": [text]}) == {"settings": [shown]}


def test_no_setting_of_trl_is_masked_without_need(tmp_path):
    filled = dict.fromkeys(vars(PromptEnhancerConfig(output_dir=str(tmp_path), use_cpu=True)), "shown")
    assert {name for name, value in masked(filled).items() if value != "shown"} == {"hub_token"}
