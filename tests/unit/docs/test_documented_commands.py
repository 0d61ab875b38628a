from tests.support.documented_commands import PLACEHOLDER, lines_of

PAGE = """
```
$ megaponder train trian-iters=1   # why
error: ...
```
<!-- needs: a cluster -->
```
megaponder submit \\
    --config run.yaml
```
1. Item

   <!-- needs: GPUs -->
   ```
   torchrun -m pipeline.cli eval run
   ```

```
tensorboard --logdir runs
megaponder eval run
megaponder eval run --tasks all  # needs a download
```
"""


def test_lines_are_found_with_what_they_need() -> None:
    lines = list(lines_of(PAGE))
    assert [line.needs for line in lines] == [None, "a cluster", "GPUs", None, "a download"]
    assert [line.shows_output for line in lines] == [True, False, False, False, False]
    assert [line.program for line in lines] == [
        "megaponder",
        "megaponder",
        "torchrun",
        "megaponder",
        "megaponder",
    ]
    assert lines[1].text.split() == ["megaponder", "submit", "--config", "run.yaml"]


def test_placeholders_are_told_from_settings() -> None:
    assert PLACEHOLDER.search("megaponder rehearse --config RUN.yaml")
    assert PLACEHOLDER.search("megaponder rehearse [--gpus N]")
    assert PLACEHOLDER.search("megaponder submit submit.partition=...")
    assert PLACEHOLDER.search("megaponder report RUN")
    assert not PLACEHOLDER.search("megaponder train profile.steps=[5,7] data.path=runs/data")
    assert not PLACEHOLDER.search("megaponder generate runs/demo --prompt 'The' --max-new-tokens 24")
