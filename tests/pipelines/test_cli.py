"""What the command line repeats, as it may not import TensorFlow."""

import dataclasses
import inspect

import pytest

from m2m_tf.data.sources import simulator
from m2m_tf.serving.server import ServerSettings
from pipelines import cli


def _defaults(*arguments):
    return vars(cli._parser().parse_args(arguments))


def test_serve_has_the_servers_defaults():
    told = _defaults("serve", "folder")
    settings = dataclasses.asdict(ServerSettings())
    shared = settings.keys() & told.keys()
    assert shared == settings.keys() - {"grace_seconds"}
    assert {name: told[name] for name in shared} == {
        name: settings[name] for name in shared
    }


@pytest.mark.parametrize(
    ("flags", "dependence"), [((), True), (("--same-mechanisms",), False)]
)
def test_simulate_has_the_simulators_defaults(flags, dependence):
    told = _defaults("simulate", "folder", *flags)
    parameters = inspect.signature(simulator.write_tables).parameters
    names = ("advertisers", "days", "seed", "mechanism_strength", "scenarios")
    for name in names:
        assert told[name] == parameters[name].default
    assert (not told["same_mechanisms"]) == dependence
    assert parameters["scenario_dependence"].default is True


def test_a_date_in_another_order_is_refused(capsys):
    command = ["predict", "--model", "m", "--spec", "s", "--output", "o"]
    with pytest.raises(SystemExit):
        cli.main([*command, "--cutoff", "31.12.2017"])
    told = capsys.readouterr().err
    assert "a date is written YYYY-MM-DD. Received: '31.12.2017'" in told
