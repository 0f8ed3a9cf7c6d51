"""The functional model class that all builders return."""

import keras

from m2m_tf.data import schema


@keras.saving.register_keras_serializable("m2m_tf")
class ForecastModel(keras.Model):
    """Functional model with metrics per (task, scenario).

    Keras hands metrics the labels and predictions of one output, but not the
    inputs; here each step also updates `cell_metrics` with the scenario of
    every sample. Otherwise a plain `keras.Model`.

    Attributes:
        cell_metrics: A `metrics.CellMetrics`, or None to track none. Set it
            before `compile`, and again after loading: it is not saved with
            the model.

    Example:

    >>> import m2m_tf
    >>> from m2m_tf.metrics import CellMetrics
    >>> model = m2m_tf.m2m(data.preprocessor.model_inputs, view_dim=8)
    >>> model.cell_metrics = CellMetrics(data.spec.task_names, num_scenarios=4)
    >>> model.compile("adam", loss=m2m_tf.PoissonLogRate())
    >>> told = model.evaluate(data.test(16), verbose=0, return_dict=True)
    >>> "overall_nmae" in told
    True
    """

    cell_metrics = None

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self.cell_metrics is not None:
            scenario = x[schema.SCENARIO_FEATURES][:, 0]
            if not isinstance(y, dict):
                raise TypeError(
                    "With `cell_metrics` give labels as a dict, task name → "
                    f"labels. Received: {type(y).__name__}."
                )
            # The first column of any head's output is the log rate.
            log_rates = {name: x[:, :1] for name, x in y_pred.items()}
            self.cell_metrics.update_state(
                y, log_rates, scenario, sample_weight
            )
        return super().compute_metrics(x, y, y_pred, sample_weight)
