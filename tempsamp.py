"""The `tempsamp` command: one tree, whose leaves are imported when they are called.

So `--help`, completion and a mistyped option answer at once, whatever a command needs to run.
"""

import math
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from common.errors import last_words
from common.surroundings import settle

if TYPE_CHECKING:
    from common.config import Run

Command = Callable[..., None]


class Finite(TyperCommand):
    """A command whose numbers are finite: where an option has no range, arithmetic ends at them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words after the command's name; what is left of them."""
        rest = super().parse_args(ctx, args)
        option: Any
        for option in self.params:
            value = ctx.params.get(option.name)
            if isinstance(value, float) and not math.isfinite(value):
                said = f"found {value}, wanted a finite number"
                raise typer.BadParameter(said, ctx=ctx, param=option)
        return rest


class Leaf(TyperCommand):
    """A command that a job defines; its function here imports and returns the job's.

    Or it returns a `typer.Typer` of its own, for a command that has commands below it.
    """

    def loaded(self) -> Any:
        """The command with its options."""
        assert self.callback is not None
        job = self.callback()
        if not isinstance(job, typer.Typer):
            function, job = job, typer.Typer(**PLAIN)
            job.command(cls=Finite)(function)
        command = typer.main.get_command(job)
        command.name = self.name
        return command


class Tree(TyperGroup):
    """Commands, of which leaves are loaded once they are named."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Called to run a command, to show its help, and to complete its options."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.loaded() if isinstance(command, Leaf) else command, rest


PLAIN: dict[str, Any] = {"cls": Tree, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(cls=Tree, no_args_is_help=True, pretty_exceptions_enable=False)
reward = typer.Typer(no_args_is_help=True, help="The reward service.")
rollout = typer.Typer(no_args_is_help=True, help="Rollout replicas.")
data = typer.Typer(cls=Tree, no_args_is_help=True, help="From annotations and videos to a cache.")
reframe = typer.Typer(
    cls=Tree, no_args_is_help=True, help="Crops that follow the highlights of videos."
)
SERVICES, JOBS = "Services", "Jobs"
"""Headings of `tempsamp --help`."""
app.add_typer(reward, name="reward", rich_help_panel=SERVICES)
app.add_typer(rollout, name="rollout", rich_help_panel=SERVICES)
app.add_typer(data, name="data", rich_help_panel=JOBS)
app.add_typer(reframe, name="reframe", rich_help_panel=JOBS)

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
    from common.secrets import tokens

    changed = {"host": host, "port": port, "workers": workers}
    given = [f"reward.{key}={value}" for key, value in changed.items() if value is not None]
    if config_file is None:
        settings = config.load_reward([*(overrides or ()), *given])
        known = tokens()
    else:
        run = config.load(config_file, overrides=[*(overrides or ()), *given])
        settings, known = run.reward, run.shared.tokens
    from services.reward.server import serve

    serve(settings, tokens=known)


@rollout.command("serve")
def rollout_serve(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Start one rollout replica; run it as often as there are GPUs."""
    from common import config

    run = config.load(config_file, overrides=overrides or ())
    if run.rollout.weights == "learner":
        from common.queue.access import refuse_open_redis

        refuse_open_redis(run.shared)
    _fetch_model(run, service="rollout")
    from services.rollout.server import serve

    serve(run)


@app.command("learner", cls=Finite, rich_help_panel=SERVICES)
def learner(
    config_file: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in learner.run_dir.")
    ] = False,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this node, one a GPU.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that train, with --ranks each.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Number of this node, from 0.")] = 0,
    meet: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of node 0, on all nodes; needed for several."),
    ] = None,
    shutdown_timeout: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds from SIGTERM to SIGKILL of ranks; default: as long as they take."
        ),
    ] = None,
    stopped_code: Annotated[
        int,
        typer.Option(
            min=0, max=255, help="Exit code after SIGTERM, for who takes 0 for a finished run."
        ),
    ] = 0,
) -> None:
    """Start the learner: one process, or `--ranks` of them on each of `--nodes`."""
    from common import config
    from common.logs import critical_end
    from common.queue.access import refuse_open_redis
    from services.learner.launch import Fleet, is_rank, launch, own_command

    fleet = Fleet(ranks=ranks, nodes=nodes, node_rank=node_rank, meet=meet)
    run = config.load(config_file, overrides=overrides or ())
    refuse_open_redis(run.shared)
    _fetch_model(run, service="learner")
    wants_launcher = fleet.world_size > 1 or shutdown_timeout is not None or stopped_code != 0
    if wants_launcher and not is_rank():
        code = launch(
            fleet, own_command(), shutdown_timeout_s=shutdown_timeout, stopped_code=stopped_code
        )
        raise typer.Exit(code)
    from services.learner.train import train

    validate = None
    if run.learner.validation.rows is not None:
        from jobs.evaluation.held_out import Validation

        validate = Validation(run)
    with critical_end("learner failed"):
        train(run, resume=resume, validate=validate)


@app.command("status", cls=Leaf, rich_help_panel=SERVICES)
def status() -> Command:
    """Show the replicas, the learner and the queues of a run."""
    from jobs.fleet.status import command

    return command


@app.command("drain", cls=Leaf, rich_help_panel=SERVICES)
def drain() -> Command:
    """Take one replica out of the ring, in order."""
    from jobs.fleet.drain import command

    return command


@app.command("replay", cls=Leaf, rich_help_panel=SERVICES)
def replay() -> Command:
    """Recompute a dumped step, and name what differs."""
    from services.learner.watching.command import command

    return command


@app.command("demo", cls=Leaf, rich_help_panel=JOBS)
def demo() -> Command:
    """Run the whole ring on this machine: clips, services, training, report."""
    from jobs.demo.run import command

    return command


@data.command("convert", cls=Leaf)
def data_convert() -> Command:
    """Turn published annotation files into trainer rows."""
    from jobs.data.convert_command import command

    return command


@data.command("split", cls=Leaf)
def data_split() -> Command:
    """Hold rows of whole videos out of those that are trained on."""
    from jobs.data.split import command

    return command


@data.command("inspect", cls=Leaf)
def data_inspect() -> Command:
    """Show what an annotation file holds, and check its videos."""
    from jobs.data.inspection.command import command

    return command


@data.command("preprocess", cls=Leaf)
def data_preprocess() -> Command:
    """Decode the videos of trainer rows into a clip cache."""
    from jobs.data.preprocess import command

    return command


@data.command("import-pt", cls=Leaf)
def data_import_pt() -> Command:
    """Bring an old cache of .pt files into a clip cache."""
    from jobs.data.import_pt import command

    return command


@app.command("eval", cls=Leaf, rich_help_panel=JOBS)
def evaluate() -> typer.Typer:
    """Answer benchmarks with a checkpoint; `eval score FILE` scores anybody's predictions."""
    from jobs.evaluation.command import command

    tree = typer.Typer(**PLAIN, invoke_without_command=True)
    tree.callback()(command)
    tree.command("score", cls=Leaf)(evaluate_score)
    return tree


def evaluate_score() -> Command:
    """Score a prediction file under every protocol, without a model."""
    from jobs.evaluation.score_command import command

    return command


@app.command("compare", cls=Leaf, rich_help_panel=JOBS)
def compare() -> Command:
    """Compare two evaluations query by query."""
    from jobs.evaluation.comparing.command import command

    return command


@app.command("dash", cls=Leaf, rich_help_panel=JOBS)
def dash() -> Command:
    """Show runs in a browser while they learn, and afterwards."""
    from jobs.dash.command import command

    return command


@app.command("runs", cls=Leaf, rich_help_panel=JOBS)
def runs() -> Command:
    """List runs: method, steps, best validation, state."""
    from jobs.dash.listing import command

    return command


@app.command("plan", cls=Leaf, rich_help_panel=JOBS)
def plan() -> Command:
    """Say whether a run file fits a fleet of GPUs."""
    from jobs.recipes.command import command

    return command


@app.command("doctor", cls=Leaf, rich_help_panel=JOBS)
def doctor() -> Command:
    """Look for what would keep a run from working, and say what mends it."""
    from jobs.doctor.command import command

    return command


@app.command("audit", cls=Leaf, rich_help_panel=JOBS)
def audit() -> Command:
    """Prove that a run trained on every row once, or list the others."""
    from jobs.audit.command import command

    return command


@app.command("ground", cls=Leaf, rich_help_panel=JOBS)
def ground() -> Command:
    """Ask when something happens in one video."""
    from jobs.ground.command import command

    return command


@reframe.command("center", cls=Leaf)
def reframe_center() -> Command:
    """Write the centred crop of every frame, from headers alone."""
    from jobs.reframe.center import command

    return command


@reframe.command("qwen", cls=Leaf)
def reframe_qwen() -> Command:
    """Ask replicas for highlights and subjects, and write boxes that follow them."""
    from jobs.reframe.qwen import command

    return command


@reframe.command("check", cls=Leaf)
def reframe_check() -> Command:
    """List what is wrong with a submission."""
    from jobs.reframe.check import command

    return command


@reframe.command("show", cls=Leaf)
def reframe_show() -> Command:
    """Show what a submission does to one video."""
    from jobs.reframe.show import command

    return command


@reframe.command("score", cls=Leaf)
def reframe_score() -> Command:
    """Score a submission against known boxes, by figures of our own."""
    from jobs.reframe.score import command

    return command


def _fetch_model(run: "Run", *, service: str) -> None:
    """What is wrong with shared.model ends the command before anything heavy is imported."""
    from common.logs import configure
    from common.model.folder import fetched

    configure(service, run_id=run.shared.run_id)
    fetched(run.shared.model, knob="shared.model")


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"tempsamp {metadata.version('tempsamp')}\n")
        raise typer.Exit


@dataclass
class Wanted:
    """What stands between `tempsamp` and the name of a command."""

    debug: bool = False


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show and leave."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of whatever ends the command.")
    ] = False,
) -> None:
    """TempSamp-R1 as a service: video temporal-grounding RL with GT injection."""
    if debug:
        context.obj.debug = True


def main() -> None:
    """Run the command line: whatever ends it by itself is one line, and an exit code.

    2 for what the same words would meet again (a mistake in them, in a file, a taken port), 1 for
    the rest, 130 for Ctrl-C. Tracebacks are shown with `--debug`; services log them besides.
    """
    settle()
    wanted = Wanted()
    try:
        code = app(standalone_mode=False, obj=wanted)
    except Exception as error:  # noqa: BLE001 - nothing leaves a command but its line and its code
        if wanted.debug:
            traceback.print_exc()
        line, code = _usage(error) or last_words(error)
        _say(line)
    sys.exit(code if isinstance(code, int) else 0)


def _say(line: str) -> None:
    """To standard error; in colour as `jobs.local.terminal` has it."""
    if not sys.stderr.isatty() and not os.environ.get("FORCE_COLOR"):
        sys.stderr.write(line)  # rich is not waited for
        return
    from jobs.local.terminal import console

    console(stderr=True).print(line, style="red", end="", markup=False, soft_wrap=True)


def _usage(error: Exception) -> tuple[str, int] | None:
    """What is wrong with the words of a command line, of which typer has its own kind of error."""
    usage_error = typer.BadParameter.__mro__[1]
    if not isinstance(error, usage_error):
        return None
    if isinstance(error, typer.BadParameter):
        error.message = _judged(error)
    context, said = getattr(error, "ctx", None), error.format_message()  # type: ignore[attr-defined]
    command = context.command_path if context else "tempsamp"
    # Nothing is said where help was shown instead: a group without a command.
    rest = f"; `{command} --help` lists what it takes\n"
    return f"tempsamp: {said.rstrip('.')}{rest}" if said else "", 2


def _judged(error: typer.BadParameter) -> str:
    """With the value that was found: typer has pydantic judge it, and shows the judgement alone."""
    problems = getattr(error.__cause__, "errors", None)
    if problems is None:
        return error.message
    problem = problems()[0]
    said: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return said
    return f"found {problem['input']}: {said[0].lower()}{said[1:]}"


if __name__ == "__main__":
    main()
