import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from m2m_tf import training
from m2m_tf.data import panel, schema, windows
from m2m_tf.models import explanation
from m2m_tf.signatures import default_values, serialize_example


@pytest.fixture(scope="module")
def signatures(exported):
    model = tf.saved_model.load(str(exported / "1"))
    # The signatures live no longer than the model.
    yield model.signatures


@pytest.fixture(scope="module")
def raw(clinic_data):
    batch = next(iter(clinic_data.raw("test", 16).as_numpy_iterator()))
    return {name: batch[name] for name in schema.raw_features(clinic_data.spec)}


def tensors(raw):
    return {name: tf.constant(values) for name, values in raw.items()}


def test_all_scenarios_at_once_are_each_by_itself(clinic_data, signatures):
    spec = clinic_data.spec
    (cutoff,) = clinic_data.splits.test[:1]
    until = dataclasses.replace(spec, end=windows.date_of(spec, cutoff))
    (grid,) = panel.Grids(until).read(0, 1000)
    rows = {k: x.numpy() for k, x in windows.cut_latest(until, grid).items()}
    names = clinic_data.preprocessor.scenario_names[1:]
    entities = sorted(set(rows["entity"]))[:5]
    place = {
        (entity, name.decode()): index
        for index, (entity, name) in enumerate(
            zip(rows["entity"], rows["scenario"], strict=True)
        )
    }
    shapes = signatures["predict_all_scenarios"].structured_input_signature[1]
    inputs = {
        name: np.zeros((len(entities), *shape.shape[1:]), object)
        for name, shape in shapes.items()
    }
    compared = 0
    for index, entity in enumerate(entities):
        for column, scenario in enumerate(names):
            row = place.get((entity, scenario))
            if row is None:
                continue  # Never active there: zeros.
            for name, values in inputs.items():
                given = rows[name][row]
                if name in schema.own_columns(spec):
                    width = values.shape[-1]
                    values[index, column] = given[..., :width]
                else:
                    values[index] = given
    together = signatures["predict_all_scenarios"](
        **{
            name: tf.constant(values.tolist(), shapes[name].dtype)
            for name, values in inputs.items()
        }
    )
    named = schema.raw_features(spec)
    alone = signatures["predict"](**tensors({k: rows[k] for k in named}))
    assert set(together) == {*alone, "scenario"}
    for (entity, scenario), row in place.items():
        if entity not in entities or scenario not in names:
            continue
        at = entities.index(entity), names.index(scenario)
        assert together["scenario"][at].numpy().decode() == scenario
        for name, values in alone.items():
            np.testing.assert_allclose(
                together[name][at], values[row, 0], rtol=1e-5, atol=1e-6
            )
        compared += 1
    assert compared > 5


def test_explanation_is_the_trained_model_s(
    clinic_data, trained, signatures, raw
):
    told = signatures["explain"](**tensors(raw))
    model = training.load_model(trained[0])
    expected = explanation(model)(clinic_data.preprocessor(raw))
    assert set(told) == {"expert_attention", "scenario_knowledge"}
    for name, values in expected.items():
        np.testing.assert_allclose(told[name], values, rtol=1e-5, atol=1e-6)


def test_regression_is_the_mean(signatures, raw):
    examples = [
        serialize_example({name: values[row] for name, values in raw.items()})
        for row in range(3)
    ]
    forecasts = signatures["serving_default"](examples=tf.constant(examples))
    for task in ("visits", "fees", "open"):
        outputs = signatures[f"regress_{task}"](inputs=tf.constant(examples))
        np.testing.assert_array_equal(outputs["outputs"], forecasts[task])


def test_what_an_example_leaves_out_has_its_default(
    clinic_data, signatures, raw
):
    defaults = default_values(clinic_data.spec)
    assert {"days_observed", "known_future", "profile_town"} < set(defaults)
    row = {name: values[0] for name, values in raw.items()}
    short = {name: row[name] for name in row if name not in defaults}
    examples = [serialize_example(short), serialize_example(row | defaults)]
    told = signatures["serving_default"](examples=tf.constant(examples))
    for values in told.values():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values[0], values[1], rtol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="scenario"):
        short.pop("scenario")
        signatures["serving_default"](
            examples=tf.constant([serialize_example(short)])
        )
