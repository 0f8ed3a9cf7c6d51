"""Several devices at once, which have to be told of before all else."""

import subprocess
import sys

SCRIPT = """
import contextlib
import keras, numpy as np, tensorflow as tf
from m2m_tf.config import ModelSettings
from m2m_tf.data.schema import ModelInputSpec
from m2m_tf.losses import joint_poisson
from m2m_tf.metrics import CellMetrics
from m2m_tf.models import build_model
from m2m_tf.optimizers import FusedAdam

cpu, = tf.config.list_physical_devices("CPU")
devices = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, devices)
spec = ModelInputSpec(
    lookback=5, horizon=2, task_names=("clicks", "sales"), behavior_sizes=(4,),
    performance_sizes=(6, 6), scenario_sizes=(4, 3), profile_sizes=(5,),
    known_future_sizes=(), num_dense_features=3, num_history_levels=2,
)
settings = ModelSettings(
    embedding_dim=4, view_dim=8, knowledge_dim=4, num_meta_layers=1
)
rng = np.random.default_rng(0)
inputs = {
    name: rng.integers(0, 2, (32, *tensor.shape)).astype(tensor.dtype)
    for name, tensor in spec.tensors().items()
}
labels = {
    name: rng.poisson(3.0, (32, 1)).astype("float32")
    for name in spec.task_names
}

def losses(scope):
    with scope:
        keras.utils.set_random_seed(0)
        model = build_model(spec, settings, [3.0, 3.0])
        model.cell_metrics = CellMetrics(spec.task_names, 4)
        model.compile(FusedAdam(0.01), joint_poisson(spec.task_names))
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(16)
    history = model.fit(data, epochs=2, validation_data=data, verbose=0).history
    return [history[x] for x in ("loss", "val_loss", "val_overall_nmae")]

one = losses(contextlib.nullcontext())
two = losses(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
np.testing.assert_allclose(two, one, rtol=1e-3)
"""


def test_two_devices_train_as_one_does():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
