"""Several trained networks as one model."""

from collections.abc import Sequence

import keras
from keras import ops

from m2m_tf import layers
from m2m_tf.models.forecast_model import ForecastModel

MEMBER_PREFIX = "member_"


def ensemble(members: Sequence[ForecastModel]) -> ForecastModel:
    """Joins networks into one model that forecasts their mean.

    Networks that differ only in their seed err in different ways, so their
    mean errs less (deep ensembles: Lakshminarayanan et al., NeurIPS 2017). An
    option beyond the paper.

    Args:
        members: Trained models with the same inputs and outputs.

    Returns:
        A model with the inputs, outputs and name of the first member, see
        `layers.MeanForecast`. It holds copies of the members.

    Raises:
        ValueError: If there is no member.

    Example:

    >>> both = ensemble([model, model])
    >>> both.count_params() == 2 * model.count_params()
    True
    """
    if not members:
        raise ValueError("`members` must hold at least one model.")
    first = members[0]
    inputs = {
        name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name)
        for name, tensor in first.input.items()
    }
    outputs = [
        _copy(member, f"{MEMBER_PREFIX}{index}")(inputs)
        for index, member in enumerate(members)
    ]
    means = {
        task: layers.MeanForecast(name=f"{task}_mean")(
            ops.stack([output[task] for output in outputs], axis=1)
        )
        for task in first.output
    }
    return ForecastModel(inputs, means, name=first.name)


def _copy(model, name):
    """The model under another name: in one model no two may be the same."""
    copy = type(model).from_config(model.get_config() | {"name": name})
    copy.set_weights(model.get_weights())
    return copy
