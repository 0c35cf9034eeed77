"""The `tempsamp` command; commands import what they run when they run, so `--help` is instant."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import ConfigError, TempSampError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="TempSamp-R1 as a service: video temporal-grounding RL with GT injection.",
)
reward = typer.Typer(no_args_is_help=True, help="The reward service.")
rollout = typer.Typer(no_args_is_help=True, help="Rollout replicas.")
data = typer.Typer(no_args_is_help=True, help="From annotation files and videos to a cache.")
app.add_typer(reward, name="reward")
app.add_typer(rollout, name="rollout")
app.add_typer(data, name="data")

PASSED_ON: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}
"""For commands whose options are read by the job itself."""

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The run's TOML file.")]
OptionalConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="The run's TOML file; defaults without one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="section.key=value, over the file; may be repeated."),
]


@reward.command("serve")
def reward_serve(
    config_file: OptionalConfigFile = None,
    overrides: Overrides = None,
    host: Annotated[str | None, typer.Option(help="Default: reward.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: reward.port.")] = None,
    workers: Annotated[int | None, typer.Option(help="Default: reward.workers.")] = None,
) -> None:
    """Start the reward service; it needs no run file."""
    from common import config

    changed = {"host": host, "port": port, "workers": workers}
    given = [f"reward.{key}={value}" for key, value in changed.items() if value is not None]
    if config_file is None:
        settings = config.load_reward([*(overrides or ()), *given])
        token = config.token()
    else:
        run = config.load(config_file, overrides=[*(overrides or ()), *given])
        settings, token = run.reward, run.shared.token
    from services.reward.server import serve

    serve(settings, token=token)


@rollout.command("serve")
def rollout_serve(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Start one rollout replica; run it as often as there are GPUs."""
    from common import config

    run = config.load(config_file, overrides=overrides or ())
    from services.rollout.server import serve

    serve(run)


@app.command("learner")
def learner(
    config_file: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in learner.run_dir.")
    ] = False,
) -> None:
    """Start the learner; under torchrun for several ranks (`torchrun -m tempsamp learner …`)."""
    from common import config

    run = config.load(config_file, overrides=overrides or ())
    from services.learner.train import train

    validate = None
    if run.learner.validation.rows is not None:
        from jobs.evaluation.held_out import Validation

        validate = Validation(run)
    train(run, resume=resume, validate=validate)


@app.command("demo", **PASSED_ON)
def demo(context: typer.Context) -> None:
    """Run the whole ring on this machine: clips, services, training, report."""
    from jobs.demo.run import command_line

    command_line(context.args)


@data.command("convert", **PASSED_ON)
def data_convert(context: typer.Context) -> None:
    """Turn published annotation files into trainer rows."""
    from jobs.data.convert_command import command

    _run(command, context)


@data.command("inspect", **PASSED_ON)
def data_inspect(context: typer.Context) -> None:
    """Show what an annotation file holds, and check its videos."""
    from jobs.data.inspection.command import command

    _run(command, context)


@data.command("preprocess", **PASSED_ON)
def data_preprocess(context: typer.Context) -> None:
    """Decode the videos of trainer rows into a clip cache."""
    from jobs.data.preprocess import command

    _run(command, context)


@data.command("import-pt", **PASSED_ON)
def data_import_pt(context: typer.Context) -> None:
    """Bring an old cache of .pt files into a clip cache."""
    from jobs.data.import_pt import command

    _run(command, context)


@app.command("eval", **PASSED_ON)
def evaluate(context: typer.Context) -> None:
    """Answer benchmarks with a checkpoint; `eval score FILE` scores anybody's predictions."""
    if context.args[:1] == ["score"]:
        from jobs.evaluation.score_command import command as score

        _run(score, context, skip=1)
    else:
        from jobs.evaluation.command import command

        _run(command, context)


@app.command("compare", **PASSED_ON)
def compare(context: typer.Context) -> None:
    """Compare two evaluations query by query."""
    from jobs.evaluation.comparing.command import command

    _run(command, context)


@app.command("ground", **PASSED_ON)
def ground(context: typer.Context) -> None:
    """Ask when something happens in one video."""
    from jobs.ground.command import command

    _run(command, context)


def _run(command: Callable[..., None], context: typer.Context, *, skip: int = 0) -> None:
    """A job reads its own options: importing it for `--help` of another would take a second.

    The first `skip` arguments are the names of the command.
    """
    job = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    job.command()(command)
    name = " ".join([context.command_path, *context.args[:skip]])
    job(context.args[skip:], prog_name=name)


def main() -> None:
    """Run the command line; a user's mistake is one clear message and exit code 2."""
    try:
        app()
    except ConfigError as error:
        sys.stderr.write(f"tempsamp: {error}\n")
        sys.exit(2)
    except TempSampError as error:
        sys.stderr.write(f"tempsamp: {type(error).__name__}: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
