"""A dense layer whose kernel and bias are generated per sample."""

import math

import keras
import tensorflow as tf
from keras import activations, initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_rank
from m2m_tf.regularizers import of_fraction

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
# Units of a block: kernels of full rank are generated some columns at a time.
# The kernels of a batch are a matrix with a row for each sample. At the paper's
# sizes a row of whole kernels is a power of two of bytes long, so that all rows
# of a column share a few places of the processor's caches, and products with
# such a matrix take two to three times as long as with one whose rows are a
# little longer. Those of a block are no power of two, since b is generated as
# one more row of W, and blocks are small enough to be in a cache when used.
_BLOCK_UNITS = 64


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
        self._row_dim = inputs_shape[-1]
        self.input_spec = keras.layers.InputSpec(
            min_ndim=2, axes={-1: self._row_dim}
        )
        self._shared_dim = 0
        if shared_inputs_shape is not None:
            self._shared_dim = shared_inputs_shape[-1]
        knowledge_dim = scenario_knowledge_shape[-1]
        initializer = self.kernel_initializer
        if isinstance(initializer, initializers.Initializer):
            # Layers that were given the same one would start alike.
            initializer = initializer.clone()
        self.kernel_base = self._add_generator_weight(
            "kernel_base",
            (self._row_dim + self._shared_dim, self.units),
            initializer,
        )
        self.bias_base = self._add_generator_weight(
            "bias_base", (self.units,), "zeros"
        )
        if self.rank is None:
            self._add_full_generators(knowledge_dim)
        else:
            self._add_factorized_generator(knowledge_dim)

    def call(self, inputs, scenario_knowledge, shared_inputs=None):
        batches = inputs.shape[0], scenario_knowledge.shape[0]
        if None not in batches and batches[0] != batches[1]:
            raise ValueError(
                "`scenario_knowledge` must have as many rows as `inputs`; "
                "repeat it if it is the same for all. Received: "
                f"{batches[1]} and {batches[0]} rows."
            )
        scenario_knowledge = scenario_knowledge / scenario_knowledge.shape[-1]
        # One matrix product per sample: [batch, rows, d_rows], where `rows`
        # are all axes between the first and the last.
        middle_shape = inputs.shape[1:-1]
        hidden = inputs
        if len(middle_shape) != 1:
            rows = math.prod(middle_shape)
            hidden = ops.reshape(inputs, (-1, rows, self._row_dim))
        if self.rank is None:
            outputs, shared = self._full_rank_products(
                hidden, shared_inputs, scenario_knowledge
            )
        else:
            outputs, shared = self._low_rank_products(
                hidden, shared_inputs, scenario_knowledge
            )
        if shared is not None:
            # [batch, 1, rows, units] + [batch, num_shared, 1, units]
            outputs = ops.expand_dims(outputs, 1) + ops.expand_dims(shared, 2)
        elif len(middle_shape) != 1:
            outputs = ops.reshape(outputs, (-1, *middle_shape, self.units))
        return self.activation(outputs)

    def generated_kernel(self, scenario_knowledge):
        """W of eq. 11, to look at: `call` need not make it.

        Args:
            scenario_knowledge: S, float tensor `[batch, d]`.

        Returns:
            The kernel of each sample, `[batch, d_in, units]`.
        """
        scenario_knowledge = scenario_knowledge / scenario_knowledge.shape[-1]
        if self.rank is not None:
            core = self._core(scenario_knowledge)
            generated = ops.matmul(
                ops.matmul(self.input_factor, core), self.output_factor
            )
            return self.kernel_base + generated
        blocks = [
            ops.reshape(
                ops.matmul(scenario_knowledge, generator),
                (-1, self._row_dim + 1, len(block)),
            )
            for block, generator in zip(
                self._blocks, self.kernel_generators, strict=True
            )
        ]
        # Without the row that is b.
        generated = ops.concatenate(blocks, axis=-1)[:, :-1]
        if self._shared_dim:
            shared = ops.matmul(
                scenario_knowledge, self.shared_kernel_generator
            )
            shared = ops.reshape(shared, (-1, self._shared_dim, self.units))
            generated = ops.concatenate([generated, shared], axis=1)
        return self.kernel_base + generated

    def _full_rank_products(self, hidden, shared_inputs, scenario_knowledge):
        """h W + b of rows, and h W of shared rows if there are any.

        `[batch, rows, units]` and `[batch, num_shared, units]`.
        """
        row_base, shared_base = self._parts(self.kernel_base)
        # Transposed, as the gradient for 20 rows then takes 2 / 3 of the time,
        # and not by the last operation, which TensorFlow would undo.
        columns = ops.transpose(hidden, (0, 2, 1))
        columns = ops.concatenate(
            [columns, ops.ones_like(columns[:, :1])], axis=1
        )
        base = ops.concatenate(
            [row_base, ops.expand_dims(self.bias_base, axis=0)], axis=0
        )
        bases = tf.split(base, [len(block) for block in self._blocks], axis=1)
        outputs = [
            _generated_product(columns, scenario_knowledge, generator, base)
            for generator, base in zip(
                self.kernel_generators, bases, strict=True
            )
        ]
        outputs = ops.concatenate(outputs, axis=-1)
        if shared_inputs is None:
            return outputs, None
        # (V S) h = (V h) S, and V h does not depend on the sample.
        # [num_shared, d_shared] @ [d, d_shared, units]
        generator = ops.matmul(
            shared_inputs,
            ops.reshape(
                self.shared_kernel_generator,
                (-1, self._shared_dim, self.units),
            ),
        )
        num_shared = shared_inputs.shape[0]
        shared = ops.matmul(
            scenario_knowledge,
            ops.reshape(generator, (-1, num_shared * self.units)),
        )
        shared = ops.reshape(shared, (-1, num_shared, self.units))
        base = ops.matmul(_as_a_batch(shared_inputs), shared_base)
        return outputs, shared + base

    def _low_rank_products(self, hidden, shared_inputs, scenario_knowledge):
        """The same for `rank`."""
        core = self._core(scenario_knowledge)

        def product(rows, kernel_base, input_factor):
            generated = ops.matmul(ops.matmul(rows, input_factor), core)
            return ops.matmul(rows, kernel_base) + ops.matmul(
                generated, self.output_factor
            )

        row_base, shared_base = self._parts(self.kernel_base)
        row_factor, shared_factor = self._parts(self.input_factor)
        bias = ops.matmul(scenario_knowledge, self.bias_generator)
        bias = ops.expand_dims(bias + self.bias_base, axis=1)
        outputs = bias + product(hidden, row_base, row_factor)
        if shared_inputs is None:
            return outputs, None
        return outputs, product(
            _as_a_batch(shared_inputs), shared_base, shared_factor
        )

    def _parts(self, weight):
        """Its rows for `inputs` and for `shared_inputs`, or for all and None.

        Split, as the gradients of two slices would each be written whole.
        """
        if not self._shared_dim:
            return weight, None
        return ops.split(weight, [self._row_dim])

    def _core(self, scenario_knowledge):
        """C of the factorised kernel, `[batch, r, r]`."""
        return ops.reshape(
            ops.matmul(scenario_knowledge, self.kernel_generator),
            (-1, self.rank, self.rank),
        )

    def _add_full_generators(self, knowledge_dim):
        self._blocks = [
            range(first, min(first + _BLOCK_UNITS, self.units))
            for first in range(0, self.units, _BLOCK_UNITS)
        ]
        input_dim = self._row_dim + self._shared_dim
        scale = 2.0 * _GENERATED_SHARE * knowledge_dim**2 / input_dim

        def add(name, width):
            return self._add_generator_weight(
                name,
                (knowledge_dim, width),
                initializers.VarianceScaling(scale, mode="fan_in"),
                divisor=knowledge_dim,
            )

        self.kernel_generators = [
            # A row more, V_b: b is what W does to a row of ones.
            add(f"kernel_generator_{index}", (self._row_dim + 1) * len(block))
            for index, block in enumerate(self._blocks)
        ]
        if self._shared_dim:
            self.shared_kernel_generator = add(
                "shared_kernel_generator", self._shared_dim * self.units
            )

    def _add_factorized_generator(self, knowledge_dim):
        # Variances 1 / d_in, 1 / (r d) and share * 2 / r: an entry of A C B
        # sums r² products of the three, so its variance is that of the
        # full-rank V_w S, share * 2 / d_in.
        self.input_factor = self._add_generator_weight(
            "input_factor",
            (self._row_dim + self._shared_dim, self.rank),
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
        self.bias_generator = self._add_generator_weight(
            "bias_generator",
            (knowledge_dim, self.units),
            "zeros",
            divisor=knowledge_dim,
        )

    def _add_generator_weight(self, name, shape, initializer, divisor=1):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            # The penalty of eq. 19 is on V, not on its multiple.
            regularizer=of_fraction(self.generator_regularizer, divisor),
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


def _as_a_batch(shared_inputs):
    """One batch, `[1, num_shared, d_shared]`.

    To a product of matrices TensorFlow's CPU graphs add a batch of one row as
    a bias, and lose the batch's axis (tensorflow/tensorflow#126661).
    """
    return ops.expand_dims(shared_inputs, axis=0)


def _generated_product(columns, scenario_knowledge, generator, base):
    """Products of rows with kernels that are generated and not kept.

    The kernels of a batch are by far the largest tensor of a model. They are
    made when the rows are there, rather than when S is, which TensorFlow would
    do for all layers at once; and are made again for their gradients.

    Args:
        columns: h transposed, `[batch, d_in, rows]`.
        scenario_knowledge: S, `[batch, d]`.
        generator: V, `[d, d_in * units]`.
        base: v, `[d_in, units]`.

    Returns:
        h (reshape(V S) + v), `[batch, rows, units]`.
    """
    input_dim, units = base.shape

    @tf.custom_gradient
    def product(columns, knowledge, generator, base):
        # v is what S generates from a one more. As a bias of the product it
        # takes as long in float32, and in bfloat16 twice as long.
        with_one = tf.concat(
            [knowledge, tf.ones_like(knowledge[:, :1])], axis=1
        )

        def make_kernel(after):
            with tf.control_dependencies([after]):
                generator_and_base = tf.concat(
                    [generator, tf.reshape(base, (1, -1))], axis=0
                )
            kernel = tf.matmul(with_one, generator_and_base)
            return tf.reshape(kernel, (-1, input_dim, units))

        def make_gradients(gradient):
            of_kernel = tf.matmul(columns, gradient)
            of_kernel = tf.reshape(of_kernel, (-1, input_dim * units))
            of_generator, of_base = tf.split(
                tf.matmul(with_one, of_kernel, transpose_a=True),
                [generator.shape[0], 1],
            )
            return (
                tf.matmul(make_kernel(gradient), gradient, transpose_b=True),
                tf.matmul(of_kernel, generator, transpose_b=True),
                of_generator,
                tf.reshape(of_base, (input_dim, units)),
            )

        # Where profiles look for the gradients of this layer.
        scope = f"gradient_tape/{tf.get_current_name_scope()}/"

        def gradients(gradient):
            with tf.name_scope(scope):
                return make_gradients(gradient)

        outputs = tf.matmul(columns, make_kernel(columns), transpose_a=True)
        return outputs, gradients

    return product(
        columns, scenario_knowledge, tf.convert_to_tensor(generator), base
    )
