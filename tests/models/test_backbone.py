import dataclasses

import keras
import numpy as np
import pytest
from tables import SMALL_MODEL

from m2m_tf.models import BUILDERS, build_model


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


@pytest.mark.parametrize("name", BUILDERS)
def test_normalised_heads_keep_far_features_within_bounds(clinic_data, name):
    """An advertiser far outside of what was seen still gets its level."""
    inputs, _ = next(iter(clinic_data.validation(16)))
    far = inputs | {"dense_features": 1e4 * inputs["dense_features"]}
    moves = {}
    for normalized in (False, True):
        keras.utils.set_random_seed(5)
        settings = dataclasses.replace(
            SMALL_MODEL, name=name, head_normalization=normalized
        )
        model = build_model(clinic_data.preprocessor.model_inputs, settings)
        near, moved = model(inputs)["visits"], model(far)["visits"]
        moves[normalized] = np.abs(moved - near).max()
    # The heads' kernels start at 0.01, over a width of 8.
    assert moves[True] < 1 < moves[False]
