"""The `foredraft` command: run an article, use a model, measure, publish results.

What a command needs is imported when it runs, so that `--help` is there at once.
"""

import os
import sys
from pathlib import Path

import typer

from foredraft.cli import articles, measure, models
from foredraft.cli.output import progress

app = typer.Typer(
    help="Speculative decoding, measured: run the articles, use the models, publish the results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(articles.commands)
app.add_typer(models.commands)
app.add_typer(measure.commands)


def main() -> None:
    """Entry point: what the user can mend is one message and exit code 2, a failed notebook 1."""
    _use_the_copy_that_dvc_made()
    try:
        app()
    except ValueError as error:
        _fail(error, 2)
    except RuntimeError as error:
        _fail(error, 1)


def _use_the_copy_that_dvc_made() -> None:
    """Start anew from the copy of the repository in which DVC runs a queued experiment.

    The package is installed from where it was set up; its parameters, sources and outputs would be
    those, and not the experiment's.
    """
    from foredraft import paths

    source = Path.cwd() / "src"
    is_stage = "DVC_STAGE" in os.environ and (source / "foredraft" / "cli" / "app.py").is_file()
    environment = {**os.environ, "PYTHONPATH": str(source)}
    if is_stage and Path.cwd() != paths.ROOT and environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def _fail(error: Exception, code: int) -> None:
    progress.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
    sys.exit(code)
