import keras
import numpy as np
from tables import SMALL_MODEL

from m2m_tf.models import build_model


def test_dropout_leaves_dense_features_whole(clinic_data):
    keras.utils.set_random_seed(5)
    preprocessor = clinic_data.preprocessor
    network = build_model(preprocessor.model_inputs, SMALL_MODEL)
    features = keras.Model(network.inputs, network.get_layer("features").output)
    inputs, _ = next(iter(clinic_data.train(32)))
    dense = inputs["dense_features"].numpy()
    trained, served = (
        features(inputs, training=training).numpy()
        for training in (True, False)
    )
    width = dense.shape[1]
    np.testing.assert_array_equal(trained[:, -width:], dense)
    np.testing.assert_array_equal(served[:, -width:], dense)
    embedded = served[:, :-width] != 0
    dropped = (trained[:, :-width] == 0) & embedded
    assert 0.05 < dropped.sum() / embedded.sum() < 0.15
