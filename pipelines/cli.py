"""`m2m-tf <command>`: arguments → config → one call.

It lies outside `m2m_tf`, which imports TensorFlow: `--help` need not wait for
that, and TensorFlow's log level must be set before.
"""

import argparse
import datetime
import importlib.metadata
import logging
import os
import pathlib
import signal
import sys
import tempfile


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status (2: bad input)."""
    options = _parser().parse_args(arguments)
    interrupts = []

    def interrupt(number, frame):
        interrupts.append(number)
        raise KeyboardInterrupt

    # SIGTERM as Ctrl-C: what lies in temporary folders is removed.
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    # In the background of a script it is ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        if not options.debug:
            _hide_notices()
        options.command(options)
    except (KeyboardInterrupt, Exception) as error:
        # TensorFlow makes other errors of an interrupt in its own code.
        if interrupts or isinstance(error, KeyboardInterrupt):
            # On a line of its own: a bar of progress has ended none.
            print(
                "\ninterrupted; run the same command again to go on",
                file=sys.stderr,
            )
            return 130
        if options.debug or not isinstance(error, _told()):
            raise
        print(f"m2m-tf: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _told():
    """Exceptions of bad input or of this machine, told without a traceback."""
    kinds = (ValueError, OSError, ImportError, RuntimeError)
    if polars := sys.modules.get("polars"):
        # A full disk, for one.
        kinds += (polars.exceptions.PolarsError,)
    return kinds


def _hide_notices():
    """Libraries' notices would bury what a command has to say."""
    # 3: a machine without a GPU is reported as an error. What really fails
    # raises an exception, too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow 2.21 greets on the file descriptor, whatever the level.
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            import m2m_tf  # noqa: F401
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    from absl import logging

    logging.set_verbosity(logging.ERROR)


class _Version(argparse.Action):
    """Looks the version up only if it is asked for."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser, *_):
        print(f"m2m-tf {importlib.metadata.version('m2m_tf')}")
        parser.exit()


def _parser():
    parser = argparse.ArgumentParser(
        prog="m2m-tf",
        description="Forecast every entity in every scenario with M2M.",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="show tracebacks and the notices of the libraries underneath",
    )
    parser.add_argument(
        "--version", action=_Version, help="show the version and exit"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _command(
        commands,
        "init",
        _init,
        "draft a spec and a config for tables of your own",
        "m2m-tf init clicks.parquet --entity shop --scenario channel "
        "--date day",
    )
    command.add_argument("panel", type=pathlib.Path)
    for name, text in (
        ("entity", "column of entities' ids"),
        ("scenario", "column of scenarios' ids"),
        ("date", "column of days"),
    ):
        command.add_argument(f"--{name}", required=True, help=text)
    for name in ("profile", "scenarios"):
        command.add_argument(
            f"--{name}", type=pathlib.Path, help="table of their attributes"
        )
    command.add_argument(
        "--output", type=pathlib.Path, help="folder (default: the panel's)"
    )

    command = _command(
        commands,
        "validate",
        _validate,
        "check tables against the data contract",
        "m2m-tf validate my_tables/spec.yaml",
    )
    command.add_argument("spec", type=pathlib.Path)

    for name, last, text in (
        ("run", None, "tables → trained, evaluated, served model"),
        ("train", "train", "the steps of `run` up to training"),
    ):
        command = _command(
            commands, name, _run, text, f"m2m-tf {name} my_config.yaml"
        )
        command.add_argument("config", type=pathlib.Path)
        _add_folders(command)
        command.set_defaults(until=last)

    for name, text in (
        ("evaluate", "score a trained run on its test split"),
        ("export", "write a run's model as a SavedModel into its folder"),
    ):
        command = _command(
            commands, name, _redo, text, f"m2m-tf {name} runs/demo"
        )
        command.add_argument("run", type=pathlib.Path)
        command.set_defaults(step=name)

    command = _command(
        commands,
        "push",
        _push,
        "publish a run's model as the next version, if it is no step back",
        "m2m-tf push runs/demo --to saved_models/demo",
    )
    command.add_argument("run", type=pathlib.Path)
    command.add_argument(
        "--to",
        type=pathlib.Path,
        required=True,
        help="folder of versions that the server watches",
    )

    command = _command(
        commands,
        "rollback",
        _rollback,
        "publish the version before the newest one again",
        "m2m-tf rollback saved_models/demo",
    )
    command.add_argument("folder", type=pathlib.Path)

    command = _command(
        commands,
        "serve",
        _serve,
        "answer requests as TF Serving does, for laptops and tests",
        "m2m-tf serve saved_models/demo",
    )
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("--name", help="name of the model (the folder's)")
    for name, default, text in (
        ("host", "127.0.0.1", "address; anybody who reaches it may ask"),
        ("rest-port", 8501, "port of REST and metrics; 0 takes a free one"),
        ("grpc-port", 8500, "port of gRPC; 0 takes a free one"),
        ("max-bytes", 64 * 2**20, "largest request"),
        ("max-rows", 4096, "most rows of a request"),
        ("body-seconds", 30.0, "most seconds that a body may take to arrive"),
    ):
        _add_setting(command, name, default, text)

    command = _command(
        commands,
        "simulate",
        _simulate,
        "write tables of simulated advertisers, best forecasts included",
        "m2m-tf simulate simulated --advertisers 2500",
    )
    command.add_argument("output", type=pathlib.Path)
    for name, default, text in (
        ("advertisers", 2500, "number of advertisers"),
        ("days", 240, "days simulated"),
        ("seed", 0, "seeds the advertisers"),
        ("mechanism-strength", 0.5, "how much behaviours move rates"),
        ("scenarios", 6, "number of scenarios"),
    ):
        _add_setting(command, name, default, text)
    command.add_argument(
        "--same-mechanisms",
        action="store_true",
        help="switch the dependence of mechanisms on the scenario off",
    )

    command = _command(
        commands,
        "compare",
        _compare,
        "train and score rivals, ablations and seeds side by side",
        "m2m-tf compare pipelines/configs/compare_simulator.yaml",
    )
    command.add_argument("config", type=pathlib.Path)
    command.add_argument(
        "--results",
        type=pathlib.Path,
        default=pathlib.Path("docs/results"),
        help="folder of all results (default: docs/results)",
    )
    command.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("runs"),
        help="folder of tables, logs and unfinished runs (default: runs)",
    )
    command.add_argument(
        "--sweep",
        metavar="SETTING",
        help="train M2M with each value that the config's `sweeps` lists for "
        "this setting, instead of the comparison",
    )

    command = _command(
        commands,
        "predict",
        _predict,
        "forecast every entity in every scenario from tables",
        "m2m-tf predict --model saved_models/demo --spec spec.yaml "
        "--cutoff 2017-12-31 --output forecasts.parquet",
    )
    for name, text in (
        ("model", "folder of a SavedModel, or of its versions"),
        ("spec", "spec of the tables to forecast from"),
        ("output", "a .parquet file, or a folder of parts that goes on"),
    ):
        command.add_argument(
            f"--{name}", type=pathlib.Path, required=True, help=text
        )
    command.add_argument(
        "--cutoff",
        type=_date,
        required=True,
        help="last day seen, YYYY-MM-DD",
    )
    return parser


def _date(text):
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"a date is written YYYY-MM-DD. Received: {text!r}"
        ) from error


def _command(commands, name, function, text, example):
    command = commands.add_parser(
        name, help=text, description=text, epilog=f"example: {example}"
    )
    command.set_defaults(command=function)
    return command


def _add_setting(command, name, default, text):
    command.add_argument(
        f"--{name}",
        type=type(default),
        default=default,
        help=f"{text} (default: {default})",
    )


def _add_folders(command):
    command.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("runs"),
        help="folder of all runs (default: runs)",
    )
    command.add_argument(
        "--models",
        type=pathlib.Path,
        default=pathlib.Path("saved_models"),
        help="folder of all served models (default: saved_models)",
    )


def _init(options):
    from m2m_tf.data.draft import CONFIG_FILE, SPEC_FILE, write_draft

    folder = options.output or options.panel.parent
    draft = write_draft(
        folder,
        options.panel,
        options.entity,
        options.scenario,
        options.date,
        options.profile,
        options.scenarios,
    )
    spec = draft.spec
    for note in draft.notes:
        print(note)
    print(
        f"drafts: {folder / SPEC_FILE} (days {spec.start} to {spec.end}; "
        f"tasks: {', '.join(spec.task_names)}; lookback {spec.lookback}, "
        f"stride {spec.stride}) and {folder / CONFIG_FILE}\n"
        f"Look them through, then: m2m-tf validate {folder / SPEC_FILE}"
    )


def _validate(options):
    from m2m_tf.config import DatasetSpec
    from m2m_tf.data import validation

    print(
        f"valid: {validation.validate_tables(DatasetSpec.load(options.spec))}"
    )


def _run(options):
    from m2m_tf.config import RunConfig
    from pipelines.local_runner import run_pipeline

    folder = run_pipeline(
        RunConfig.load(options.config),
        options.runs,
        options.models,
        until=options.until,
    )
    print(f"results: {folder}")


def _redo(options):
    from pipelines.local_runner import load_run, require_done, run_pipeline
    from pipelines.pipeline import Workspace

    config, runs = load_run(options.run), options.run.resolve().parent
    # Neither trains, which would take the place of the last training.
    require_done(Workspace(config, runs, runs), "train")
    folder = run_pipeline(
        config,
        runs,
        until=options.step,
        force=options.step,
    )
    print(f"results: {folder}")


def _push(options):
    from pipelines.local_runner import load_run, require_done
    from pipelines.pipeline import Workspace
    from pipelines.steps import push_to

    folder = options.run.resolve()
    work = Workspace(load_run(folder), folder.parent, options.to.parent)
    require_done(work, "export")
    push_to(work, options.to)


def _rollback(options):
    from m2m_tf.serving import pushing

    print(f"serving from {pushing.rollback(options.folder)}")
    print(
        "mind: a run's forecasts.parquet is still of the model before; "
        f"`m2m-tf predict --model {options.folder}` forecasts with this one"
    )


def _serve(options):
    try:
        from m2m_tf.serving.server import ServerSettings, serve
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Serving needs {error.name}: pip install 'm2m_tf[serve]'"
        ) from error

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    serve(
        options.folder,
        options.name,
        ServerSettings(
            host=options.host,
            rest_port=options.rest_port,
            grpc_port=options.grpc_port,
            max_bytes=options.max_bytes,
            max_rows=options.max_rows,
            body_seconds=options.body_seconds,
        ),
        report=lambda line: print(line, flush=True),
    )


def _simulate(options):
    from m2m_tf import files
    from m2m_tf.data.sources import simulator

    output = options.output
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(
            f"{output}: is there already and would be lost. Give a new or an "
            "empty folder."
        )
    with files.replacing(output) as temporary:
        simulator.write_tables(
            temporary,
            advertisers=options.advertisers,
            days=options.days,
            seed=options.seed,
            scenario_dependence=not options.same_mechanisms,
            mechanism_strength=options.mechanism_strength,
            scenarios=options.scenarios,
        )
    print(f"tables: {output / 'spec.yaml'}")


def _compare(options):
    from m2m_tf.config import StudyConfig
    from pipelines.compare import run_study

    page = run_study(
        StudyConfig.load(options.config),
        options.results,
        options.runs,
        sweep=options.sweep,
        command=f"m2m-tf compare {options.config}",
    )
    print(f"results: {page}")


def _predict(options):
    from m2m_tf.config import DatasetSpec
    from m2m_tf.serving.batch_scoring import score_tables

    summary = score_tables(
        options.model,
        DatasetSpec.load(options.spec),
        options.cutoff,
        options.output,
    )
    print(f"{summary} in {options.output}")


if __name__ == "__main__":
    sys.exit(main())
