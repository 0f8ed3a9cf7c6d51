"""A dense layer whose kernel and bias are generated per sample."""

import math

import keras
import tensorflow as tf
from keras import activations, initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_rank
from m2m_tf.regularizers import L2

# Share of the kernel's variance that comes from the scenario at the start.
#
# A kernel entry is the sum v + Σ_c V_c S_c, so its variance is
# Var(v) + d Var(V) E[S²] (hyperfan-in: Chang et al., "Principled Weight
# Initialization for Hypernetworks", ICLR 2020). v takes the whole variance
# of an ordinary layer, 2 / d_in. V takes this share of it,
# Var(V) = share * 2 / (d_in d): with E[S²] ≤ 1 the sum is at most 10 % above
# an ordinary layer's, at least equal to it, and gradients reach V and S from
# the first step. Initialising V by its own shape, as a Dense layer of width
# d_in * units would, gives kernels whose variance is d_in times too large.
#
# The weights of a generator hold V times d, and S is divided by d before it
# meets them. That changes no output, but what a step does: Adam moves every
# weight by about the learning rate, and the moves of the d terms of an entry
# of V S add up, since S is mostly positive. Without the factor a generated
# kernel moves d times as far as an ordinary layer's, which at the paper's
# learning rate overflows in the second step.
_GENERATED_SHARE = 0.1
# Rows of a sample, if their number is known, from which v is added to its
# kernel, as a bias that the product V S adds while it writes, rather than
# multiplied by itself.
_MANY_ROWS = 8


@keras.saving.register_keras_serializable("m2m_tf")
class MetaDense(keras.layers.Layer):
    """Dense layer with a kernel and bias generated from scenario knowledge.

    For the scenario knowledge S of one sample (eq. 10-12 of the paper):

        W = reshape(V_w S + v_w)          [d_in, units]
        b = V_b S + v_b                   [units]
        output = activation(h W + b)

    The generation is linear and uses no statistics of the batch, so a sample
    gets the same output in any batch. With `rank` r the scenario's part of
    the kernel is factorised, W = v_w + A C B, where A [d_in, r] and B
    [r, units] are shared and only C = reshape(V_c S) [r, r] is generated.
    `h W` is then computed as `h v_w + ((h A) C) B`: the kernel of a sample
    is never made, which saves memory of size batch * d_in * units.

    Reference:

    - Zhang et al., "Leaving No One Behind: A Multi-Scenario Multi-Task Meta
      Learning Approach for Advertiser Modeling", WSDM 2022, section 4.2.1.

    Args:
        units: Positive integer, width of the output.
        activation: Activation σ of eq. 10.
        rank: Positive integer, rank of the generated part of the kernel.
            None generates a kernel of full rank, as in the paper.
        kernel_initializer: Initializer of v_w, the part of the kernel that
            all scenarios share. V_w starts small beside it.
        generator_regularizer: Regularizer of V_w (or A, V_c and B), v_w, V_b
            and v_b, which are the paper's W_1 in eq. 19.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: h, float tensor `[batch, ..., d_in]`.
        scenario_knowledge: S, float tensor `[batch, d]`.
        shared_inputs: Float tensor `[num_shared, d_shared]`, without a batch
            axis. With it h is every pair [row ‖ shared row] of a row of
            `inputs`, `[batch, rows, d_rows]`, and one of these. A pair's
            product is the sum of two, so this costs less than to make the
            pairs, and less than half in generating.

    Input shape:
        `[batch, ..., d_in]` and `[batch, d]`. When there are two or more
        axes between the first and the last, their sizes must be known.

    Output shape:
        `[batch, ..., units]`; of pairs `[batch, num_shared, rows, units]`.

    Example:

    >>> inputs = keras.random.normal((8, 5, 16))
    >>> scenario_knowledge = keras.random.normal((8, 4))
    >>> MetaDense(32)(inputs, scenario_knowledge).shape
    TensorShape([8, 5, 32])
    """

    def __init__(
        self,
        units,
        activation="leaky_relu",
        rank=None,
        kernel_initializer="he_normal",
        generator_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = require_positive_int("units", units)
        self.activation = activations.get(activation)
        self.rank = require_rank(rank)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.generator_regularizer = regularizers.get(generator_regularizer)

    def build(
        self, inputs_shape, scenario_knowledge_shape, shared_inputs_shape=None
    ):
        self._check_shapes(
            inputs_shape, scenario_knowledge_shape, shared_inputs_shape
        )
        input_dim = inputs_shape[-1]
        if shared_inputs_shape is not None:
            input_dim += shared_inputs_shape[-1]
        knowledge_dim = scenario_knowledge_shape[-1]
        self.kernel_base = self._add_generator_weight(
            "kernel_base",
            (input_dim, self.units),
            self.kernel_initializer.clone(),
        )
        if self.rank is None:
            self.kernel_generator = self._add_generator_weight(
                "kernel_generator",
                (knowledge_dim, input_dim * self.units),
                initializers.VarianceScaling(
                    2.0 * _GENERATED_SHARE * knowledge_dim**2 / input_dim,
                    mode="fan_in",
                ),
                divisor=knowledge_dim,
            )
        else:
            self._add_factorized_generator(input_dim, knowledge_dim)
        self.bias_generator = self._add_generator_weight(
            "bias_generator",
            (knowledge_dim, self.units),
            "zeros",
            divisor=knowledge_dim,
        )
        self.bias_base = self._add_generator_weight(
            "bias_base", (self.units,), "zeros"
        )

    def call(self, inputs, scenario_knowledge, shared_inputs=None):
        scenario_knowledge = scenario_knowledge / scenario_knowledge.shape[-1]
        bias = ops.matmul(scenario_knowledge, self.bias_generator)
        bias = ops.expand_dims(bias + self.bias_base, axis=1)
        if shared_inputs is None:
            # One matrix product per sample: [batch, rows, d_in], where `rows`
            # are all axes between the first and the last.
            middle_shape = inputs.shape[1:-1]
            hidden = inputs
            if len(middle_shape) != 1:
                rows = math.prod(middle_shape)
                hidden = ops.reshape(inputs, (-1, rows, inputs.shape[-1]))
            outputs = bias + self._product(
                hidden, scenario_knowledge, self.kernel_base, self._factor
            )
            if len(middle_shape) != 1:
                outputs = ops.reshape(outputs, (-1, *middle_shape, self.units))
            return self.activation(outputs)
        # Both weights belong to the columns of h, the generator's by `units`.
        # Split, as the gradients of two slices would each be written whole.
        first = inputs.shape[-1]
        bases = ops.split(self.kernel_base, [first])
        if self.rank is None:
            factors = ops.split(self._factor, [first * self.units], axis=1)
        else:
            factors = ops.split(self._factor, [first])
        own = self._product(inputs, scenario_knowledge, bases[0], factors[0])
        shared = bias + self._shared_product(
            shared_inputs, scenario_knowledge, bases[1], factors[1]
        )
        # [batch, 1, rows, units] + [batch, num_shared, 1, units]
        return self.activation(
            ops.expand_dims(own, axis=1) + ops.expand_dims(shared, axis=2)
        )

    def generated_kernel(self, scenario_knowledge):
        """W of eq. 11, to look at: `call` need not make it.

        Args:
            scenario_knowledge: S, float tensor `[batch, d]`.

        Returns:
            The kernel of each sample, `[batch, d_in, units]`.
        """
        scenario_knowledge = scenario_knowledge / scenario_knowledge.shape[-1]
        if self.rank is None:
            generated = ops.reshape(
                ops.matmul(scenario_knowledge, self.kernel_generator),
                (-1, *self.kernel_base.shape),
            )
        else:
            core = self._core(scenario_knowledge)
            generated = ops.matmul(
                ops.matmul(self.input_factor, core), self.output_factor
            )
        return self.kernel_base + generated

    @property
    def _factor(self):
        """V_w, or A of the factorised kernel."""
        return self.kernel_generator if self.rank is None else self.input_factor

    def _product(self, hidden, scenario_knowledge, kernel_base, factor):
        """h W of rows `[batch, rows, ...]`, for W of these weights."""
        if self.rank is not None:
            return self._low_rank_product(
                hidden, scenario_knowledge, kernel_base, factor
            )
        kernel = ops.matmul(scenario_knowledge, factor)
        if (hidden.shape[1] or 0) >= _MANY_ROWS:
            kernel = tf.nn.bias_add(kernel, ops.reshape(kernel_base, (-1,)))
            return ops.matmul(hidden, self._unflatten(kernel, kernel_base))
        # Two products of a few rows, rather than a sum of two kernels of
        # each sample: its gradient is once more as large as all kernels. To
        # make kernels block by block, and anew in the backward pass, was
        # tried: a quarter slower, and no less memory.
        kernel = self._unflatten(kernel, kernel_base)
        return ops.matmul(hidden, kernel) + ops.matmul(hidden, kernel_base)

    def _unflatten(self, kernel, kernel_base):
        return ops.reshape(kernel, (-1, *kernel_base.shape))

    def _shared_product(
        self, shared_inputs, scenario_knowledge, kernel_base, factor
    ):
        """The same of rows `[num_shared, ...]`: `[batch, num_shared, units]`.

        (V S) h = (V h) S, and V h does not depend on the sample.
        """
        if self.rank is not None:
            return self._low_rank_product(
                shared_inputs, scenario_knowledge, kernel_base, factor
            )
        # [num_shared, d_shared] @ [d, d_shared, units]
        generator = ops.matmul(
            shared_inputs, ops.reshape(factor, (-1, *kernel_base.shape))
        )
        shape = generator.shape
        generated = ops.matmul(
            scenario_knowledge, ops.reshape(generator, (shape[0], -1))
        )
        return ops.reshape(generated, (-1, *shape[1:])) + ops.matmul(
            shared_inputs, kernel_base
        )

    def _core(self, scenario_knowledge):
        """C of the factorised kernel, `[batch, r, r]`."""
        return ops.reshape(
            ops.matmul(scenario_knowledge, self.kernel_generator),
            (-1, self.rank, self.rank),
        )

    def _low_rank_product(
        self, hidden, scenario_knowledge, kernel_base, input_factor
    ):
        core = self._core(scenario_knowledge)
        generated = ops.matmul(ops.matmul(hidden, input_factor), core)
        return ops.matmul(hidden, kernel_base) + ops.matmul(
            generated, self.output_factor
        )

    def _add_factorized_generator(self, input_dim, knowledge_dim):
        # Variances 1 / d_in, 1 / (r d) and share * 2 / r: an entry of A C B
        # sums r² products of the three, so its variance is that of the
        # full-rank V_w S, share * 2 / d_in.
        self.input_factor = self._add_generator_weight(
            "input_factor",
            (input_dim, self.rank),
            initializers.VarianceScaling(1.0, mode="fan_in"),
        )
        self.kernel_generator = self._add_generator_weight(
            "kernel_generator",
            (knowledge_dim, self.rank * self.rank),
            initializers.VarianceScaling(
                knowledge_dim**2 / self.rank, mode="fan_in"
            ),
            divisor=knowledge_dim,
        )
        self.output_factor = self._add_generator_weight(
            "output_factor",
            (self.rank, self.units),
            initializers.VarianceScaling(2.0 * _GENERATED_SHARE, mode="fan_in"),
        )

    def _add_generator_weight(self, name, shape, initializer, divisor=1):
        regularizer = self.generator_regularizer
        if regularizer is not None and divisor > 1:
            # The penalty of eq. 19 is on V, not on its multiple.
            if isinstance(regularizer, L2):
                # Without a copy of what may be most of the model's weights.
                regularizer = regularizer.scaled(1 / divisor)
            else:

                def regularizer(weight):
                    return self.generator_regularizer(weight / divisor)

        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            regularizer=regularizer,
        )

    def _check_shapes(
        self, inputs_shape, scenario_knowledge_shape, shared_inputs_shape
    ):
        if len(inputs_shape) < 2 or inputs_shape[-1] is None:
            raise ValueError(
                "`inputs` must have shape [batch, ..., d_in] with a known "
                f"last axis. Received: inputs.shape={tuple(inputs_shape)}"
            )
        if len(inputs_shape) > 3 and None in inputs_shape[1:-1]:
            raise ValueError(
                "The axes of `inputs` between the first and the last must "
                "be known when there are two or more. "
                f"Received: inputs.shape={tuple(inputs_shape)}"
            )
        if (
            len(scenario_knowledge_shape) != 2
            or scenario_knowledge_shape[-1] is None
        ):
            raise ValueError(
                "`scenario_knowledge` must have shape [batch, d] with a "
                "known last axis. Received: scenario_knowledge.shape="
                f"{tuple(scenario_knowledge_shape)}"
            )
        if shared_inputs_shape is None:
            return
        if len(shared_inputs_shape) != 2 or None in shared_inputs_shape:
            raise ValueError(
                "`shared_inputs` must have the known shape [num_shared, "
                "d_shared], without a batch axis. Received: "
                f"shared_inputs.shape={tuple(shared_inputs_shape)}"
            )
        if len(inputs_shape) != 3:
            raise ValueError(
                "With `shared_inputs`, `inputs` must have shape [batch, rows, "
                f"d_rows]. Received: inputs.shape={tuple(inputs_shape)}"
            )

    def compute_output_shape(
        self, inputs_shape, scenario_knowledge_shape, shared_inputs_shape=None
    ):
        if shared_inputs_shape is None:
            return (*inputs_shape[:-1], self.units)
        batch, rows, _ = inputs_shape
        return (batch, shared_inputs_shape[0], rows, self.units)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "units": self.units,
                "activation": activations.serialize(self.activation),
                "rank": self.rank,
                "kernel_initializer": initializers.serialize(
                    self.kernel_initializer
                ),
                "generator_regularizer": regularizers.serialize(
                    self.generator_regularizer
                ),
            }
        )
        return config
