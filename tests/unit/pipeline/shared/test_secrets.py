import pytest

from pipeline.shared.secrets import MASK, is_masked, is_secret_name, mask_text, mask_variable

SECRET_NAMES = (
    *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "DB_PASS", "apiKey", "GITHUB_PAT"),
    *(
        "MY_CREDENTIALS",
        "ssh_private_key",
        "AUTH",
        "X-Amz-Signature",
        "sig",
        "X-Amz-Security-Token",
        "HFTOKEN",
    ),
)
PLAIN_NAMES = (
    *("PATH", "HOME", "NCCL_DEBUG", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "PASSIVE", "AUTHOR", "A"),
    *("KEYBOARD", "COMPATIBILITY", "PATIENCE", "CUDA_VISIBLE_DEVICES", "part", "versionId"),
)


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)
    assert mask_variable(name, "hunter2") == MASK
    assert mask_variable(name, "") == ""


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_other_names_are_not_secrets_unless_they_are_listed(name: str) -> None:
    assert not is_secret_name(name)
    assert mask_variable(name, "hunter2") == "hunter2"
    assert mask_variable(name, "hunter2", [name]) == MASK


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:hunter2@host/file", "https://me:***@host/file"),
        ("https://me:hun@ter2@host:8080/a@b", "https://me:***@host:8080/a@b"),
        ("postgres://me:hunter2@db", "postgres://me:***@db"),
        ("https://hunter2@github.com/x.git", "https://***@github.com/x.git"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("s3://bucket/a.jsonl?versionId=3", "s3://bucket/a.jsonl?versionId=3"),
        ("https://h/a?part=1&X-Amz-Signature=hunter2&x=2", "https://h/a?part=1&X-Amz-Signature=***&x=2"),
        ("https://h/a?sv=2&sig=hunter2%3D#f", "https://h/a?sv=2&sig=***#f"),
        ("export HF_TOKEN=hunter2 A=1", "export HF_TOKEN=*** A=1"),
        ("WANDB_API_KEY='hun ter2'; run", "WANDB_API_KEY=***; run"),
        ('curl -u "https://me:hunter2@h"', 'curl -u "https://me:***@h"'),
        ("docs/a:b@c", "docs/a:b@c"),
    ],
)
def test_passwords_and_signatures_are_masked_and_the_rest_is_not(text: str, masked: str) -> None:
    assert mask_text(text) == masked
    assert mask_text(masked) == masked
    assert is_masked(masked) == (masked != text)


def test_a_pattern_of_files_was_not_masked() -> None:
    assert not is_masked("data/***.jsonl")
    assert not is_masked("a ** b *** c")
