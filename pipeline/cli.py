"""`megaponder`: the one entry of the program."""

import sys

import typer

from cluster.commands import bench_submit, jobs, submit
from pipeline.commands import (
    bench,
    checkpoint,
    compare,
    convert,
    data,
    demo,
    evaluate,
    generate,
    golden,
    parity,
    plan,
    report,
    tokenizer,
    train,
    verify,
)
from pipeline.commands.failures import USER_ERRORS, exit_code_of
from pipeline.ranks.environment import Ranks

app = typer.Typer(
    name="megaponder",
    help="Pretrain language models that decide per token how long to think, on Megatron-Core.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    # A crash keeps Python's own traceback, which logs and schedulers can read.
    pretty_exceptions_enable=False,
)

app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=train.EPILOG)(train.train)
app.command("eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=verify.EPILOG)(verify.verify)
app.command(epilog=generate.EPILOG)(generate.generate)
app.command(epilog=compare.EPILOG)(compare.compare)
app.command(epilog=plan.EPILOG)(plan.plan)
app.command(epilog=submit.EPILOG)(submit.submit)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=golden.EPILOG)(golden.golden)
app.command(epilog=parity.EPILOG)(parity.parity)
bench.app.command("submit", epilog=bench_submit.EPILOG)(bench_submit.submit)
app.add_typer(bench.app, name="bench")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(convert.app, name="convert")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(tokenizer.app, name="tokenizer")


def main() -> None:
    """Run the command line; errors meant for users end in a message and an exit code, not a traceback."""
    try:
        app()
    except USER_ERRORS as error:
        # Every rank meets the same error; one tells it.
        if Ranks.from_environment().rank == 0:
            typer.echo(f"error: {error}", err=True)
        sys.exit(exit_code_of(error))


if __name__ == "__main__":
    main()
