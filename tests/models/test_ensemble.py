import numpy as np
import pytest

from m2m_tf.models import ensemble, explanation

from .model_checks import build, check_saves_and_loads_exactly


@pytest.fixture(scope="module")
def members(clinic_data):
    models = [build(clinic_data), build(clinic_data)]
    for weight in models[1].trainable_variables:
        weight.assign(weight * 1.3)
    return models


def test_mean_rate_is_the_mean_of_the_members(members, batch):
    joined = ensemble(members)(batch[0])
    for task, output in joined.items():
        rates = [np.exp(m(batch[0])[task][:, 0]) for m in members]
        assert not np.allclose(rates[0], rates[1])
        np.testing.assert_allclose(
            np.exp(output[:, 0]), (rates[0] + rates[1]) / 2, rtol=1e-5
        )


def test_has_the_name_inputs_and_outputs_of_its_members(members):
    joined = ensemble(members)
    assert joined.name == members[0].name
    assert set(joined.input) == set(members[0].input)
    assert list(joined.output) == list(members[0].output)
    assert joined.count_params() == sum(m.count_params() for m in members)


def test_saves_and_loads_exactly(members, batch, tmp_path):
    check_saves_and_loads_exactly(
        ensemble(members), batch, tmp_path / "model.keras"
    )


def test_members_may_be_of_any_model(clinic_data, batch):
    joined = ensemble([build(clinic_data, name="mmoe")] * 2)
    single = build(clinic_data, name="mmoe")
    np.testing.assert_allclose(
        joined(batch[0])["fees"], single(batch[0])["fees"], rtol=1e-5
    )


def test_attention_is_that_of_the_first_member(members, batch):
    np.testing.assert_allclose(
        explanation(ensemble(members))(batch[0])["expert_attention"],
        explanation(members[0])(batch[0])["expert_attention"],
        rtol=1e-6,
    )


def test_needs_a_member():
    with pytest.raises(ValueError, match="at least one model"):
        ensemble([])
