"""What an exported model can be asked: functions over raw features."""

import base64
import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema, windows
from m2m_tf.features import Preprocessor
from m2m_tf.forecast import task_forecasts
from m2m_tf.models import ForecastModel, explanation

SERVING_DEFAULT = "serving_default"
PREDICT = "predict"
PREDICT_ALL_SCENARIOS = "predict_all_scenarios"
EXPLAIN = "explain"
REGRESS_PREFIX = "regress_"
# Names that TF Serving's Regress API asks for.
REGRESS_INPUT, REGRESS_OUTPUT = "inputs", "outputs"
EXAMPLES = "examples"
# The field of a model's metadata that holds its signatures.
SIGNATURE_DEF = "signature_def"


@dataclasses.dataclass(frozen=True)
class Signature:
    """One signature: a function, and the tensors that it takes.

    Args:
        function: From its inputs to a dict of tensors.
        inputs: Name → `tf.TensorSpec`, or a single spec.

    Example:

    >>> signatures = make_signatures(model, data.preprocessor)
    >>> signatures["serving_default"].inputs.name
    'examples'
    """

    function: Callable
    inputs: dict | tf.TensorSpec


def make_signatures(
    model: ForecastModel, preprocessor: Preprocessor
) -> dict[str, Signature]:
    """The signatures of a model, by name.

    - `serving_default`: serialized `tf.Example`s, `examples` `[batch]`.
    - `predict`: the named tensors of `schema.raw_features`.
    - `predict_all_scenarios`: one row per entity, with its history in every
      scenario that the model knows, see `all_scenarios_features`.
    - `explain`: inputs as `predict`; the attention of each task on each
      expert, and the scenario knowledge. Only of models that have them.
    - `regress_<task>`: serialized examples in, the mean forecast out, for TF
      Serving's Regress API.

    The first three give `{task: mean forecast, float32 [batch, 1]}` (`[batch,
    scenarios]` the third, and `scenario`, their names) and, from a model with
    the hurdle likelihood, `<task>_median`, `<task>_lower` and `<task>_upper`.

    Example:

    >>> list(make_signatures(model, data.preprocessor))[:3]
    ['serving_default', 'predict', 'predict_all_scenarios']
    """
    spec = preprocessor.spec
    raw_inputs = _tensor_specs(schema.raw_features(spec))
    examples = tf.TensorSpec([None], tf.string, name=EXAMPLES)
    tasks = preprocessor.label_ranges()

    # One traced function, which all signatures call.
    @tf.function(input_signature=[raw_inputs], autograph=False)
    def forecast(raw):
        outputs = model(preprocessor(raw), training=False)
        return {
            schema.output_name(task, part): values
            for task, whole, limit in tasks
            for part, values in task_forecasts(
                outputs[task], whole, limit
            ).items()
        }

    def parse(serialized):
        return tf.io.parse_example(serialized, _parsing(spec))

    def forecast_all_scenarios(features):
        raw = _every_scenario(preprocessor, features)
        shape = [-1, len(preprocessor.known_scenarios)]
        forecasts = {
            name: tf.reshape(values, shape)
            for name, values in forecast(raw).items()
        }
        names = tf.reshape(raw[schema.SCENARIO], shape)
        return forecasts | {schema.SCENARIO: names}

    signatures = {
        SERVING_DEFAULT: Signature(lambda x: forecast(parse(x)), examples),
        PREDICT: Signature(forecast, raw_inputs),
        PREDICT_ALL_SCENARIOS: Signature(
            forecast_all_scenarios,
            _tensor_specs(all_scenarios_features(preprocessor)),
        ),
    }
    explainer = explanation(model)
    if explainer is not None:
        signatures[EXPLAIN] = Signature(
            lambda raw: explainer(preprocessor(raw), training=False), raw_inputs
        )
    for task in spec.task_names:
        signatures[REGRESS_PREFIX + task] = Signature(
            _regression(task, forecast, parse),
            tf.TensorSpec([None], tf.string, name=REGRESS_INPUT),
        )
    return signatures


def default_values(spec: DatasetSpec) -> dict[str, np.ndarray]:
    """Raw features that a `tf.Example` may leave out → what stands for them.

    A whole lookback has been observed, nothing is known of the future,
    and attributes are unknown: `""` and NaN, both of which the model takes
    for a value that it has not seen in training.

    Example:

    >>> default_values(data.spec)["days_observed"]
    array(28)
    """
    defaults = {}
    for name, tensor in schema.raw_features(spec).items():
        value = default_value(name, tensor.shape, tensor.dtype, spec.lookback)
        if value is not None:
            defaults[name] = value
    return defaults


def default_value(name: str, shape, dtype: str, lookback: int):
    """What stands for one raw feature, see `default_values`; None: nothing.

    Example:

    >>> default_value("scenario_channel", (), "string", lookback=28)
    array(b'', dtype='|S1')
    """
    if name == schema.DAYS_OBSERVED:
        return np.array(lookback, "int64")
    if name == schema.KNOWN_FUTURE:
        return np.zeros(shape, "float32")
    if name.startswith((schema.SCENARIO_PREFIX, schema.PROFILE_PREFIX)):
        return np.array(b"" if dtype == "string" else np.float32("nan"))
    return None


def serialize_example(row: dict[str, np.ndarray]) -> bytes:
    """Raw features of one sample as a serialized `tf.Example`.

    Example:

    >>> type(serialize_example({"scenario": np.array(b"video")}))
    <class 'bytes'>
    """
    features = {name: _feature(values) for name, values in row.items()}
    return tf.train.Example(
        features=tf.train.Features(feature=features)
    ).SerializeToString()


def json_text(value: bytes | str) -> str | dict[str, str]:
    """A text as TF Serving's JSON has it: bytes that are no text in base64.

    Example:

    >>> json_text(b"tv"), json_text(b"\\xff")
    ('tv', {'b64': '/w=='})
    """
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def all_scenarios_features(
    preprocessor: Preprocessor,
) -> dict[str, schema.Tensor]:
    """Name → shape and dtype of the inputs of `predict_all_scenarios`.

    Those of an entity in one scenario, where a sequence has an axis of
    scenarios in front, in the order of `Preprocessor.known_scenarios`. A
    scenario in which the entity was not active has zeros.
    Totals over scenarios and the scenarios' attributes are the model's own
    affair.

    Example:

    >>> inputs = all_scenarios_features(data.preprocessor)
    >>> inputs["behavior_sequence"]
    Tensor(shape=(3, 28, 2), dtype='float32')
    """
    spec = preprocessor.spec
    num_scenarios = len(preprocessor.known_scenarios)
    own = schema.own_columns(spec)
    tensors = schema.raw_features(spec)
    features = {}
    for name, tensor in tensors.items():
        if name == schema.SCENARIO or name in _scenario_attributes(spec):
            continue
        if name in own:
            days = tensor.shape[0]
            tensor = schema.Tensor(
                (num_scenarios, days, len(own[name])), tensor.dtype
            )
        features[name] = tensor
    return features


def _every_scenario(preprocessor, features):
    """Rows of `predict_all_scenarios` → raw features, scenarios innermost."""
    spec = preprocessor.spec
    names = preprocessor.known_scenarios
    own = schema.own_columns(spec)
    num_rows = tf.shape(features[schema.CUTOFF])[0]
    raw = {}
    for name, values in features.items():
        if name not in own:
            raw[name] = tf.repeat(values, len(names), axis=0)
            continue
        if name != schema.KNOWN_FUTURE:
            totals = windows.scenario_totals(spec, values)
            if totals is not None:
                values = tf.concat([values, totals], -1)
        raw[name] = tf.reshape(values, [-1, *values.shape[2:]])
    columns = {schema.SCENARIO: list(names)} | {
        name: preprocessor.statistics.scenario_attributes[name]
        for name in _scenario_attributes(spec)
    }
    tensors = schema.raw_features(spec)
    for name, values in columns.items():
        missing = "" if tensors[name].dtype == "string" else float("nan")
        values = [missing if value is None else value for value in values]
        constant = tf.constant(values, tensors[name].dtype)
        raw[name] = tf.tile(constant, [num_rows])
    return raw


def _feature(values):
    values = np.asarray(values).ravel()
    if values.dtype.kind in "SO":
        return tf.train.Feature(
            bytes_list=tf.train.BytesList(value=values.tolist())
        )
    if values.dtype.kind == "i":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _scenario_attributes(spec):
    return schema.attribute_tensors(
        spec.scenario_columns, schema.SCENARIO_PREFIX
    )


def _regression(task, forecast, parse):
    def regress(serialized):
        return {REGRESS_OUTPUT: forecast(parse(serialized))[task]}

    return regress


def _tensor_specs(tensors):
    return {
        name: tf.TensorSpec((None, *tensor.shape), tensor.dtype, name=name)
        for name, tensor in tensors.items()
    }


def _parsing(spec):
    defaults = default_values(spec)
    return {
        name: tf.io.FixedLenFeature(
            tensor.shape, tensor.dtype, defaults.get(name)
        )
        for name, tensor in schema.raw_features(spec).items()
    }
