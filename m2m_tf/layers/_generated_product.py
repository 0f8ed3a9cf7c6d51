"""Product with generated kernels that are never whole in memory."""

from keras import ops

# Floats of one sample's kernel that are made at a time. With some hundred
# samples a block is a few MiB: it stays in the processor's caches between
# being made and being used, and the kernels of a batch never exist.
BLOCK = 8192


def block_rows(input_dim: int, units: int) -> int:
    """Rows of a `[input_dim, units]` kernel that are made at a time."""
    wanted = max(1, BLOCK // units)
    return max(
        rows
        for rows in range(1, min(wanted, input_dim) + 1)
        if input_dim % rows == 0
    )


def generated_product(hidden, knowledge, generator, units):
    """h reshape(S V), a block of the kernels' rows at a time.

    Neither the kernels of the batch nor their gradients are kept: the
    backward pass makes each block anew, which costs a third more
    multiplications and saves writing and reading batch * d_in * units floats
    five times over. Outputs and gradients are those of

        ops.matmul(hidden, ops.reshape(ops.matmul(S, V), (-1, d_in, units)))

    Args:
        hidden: h, float tensor `[batch, rows, d_in]`.
        knowledge: S, float tensor `[batch, d]`.
        generator: V, float tensor `[d, d_in * units]`.
        units: Columns of a kernel.

    Returns:
        Float tensor `[batch, rows, units]`.
    """
    input_dim = hidden.shape[-1]
    depth = generator.shape[0]
    size = block_rows(input_dim, units)
    count = input_dim // size

    def kernel_of(knowledge, factor):
        kernel = ops.matmul(knowledge, factor)
        return ops.reshape(kernel, (-1, size, units))

    if count == 1:
        return ops.matmul(hidden, kernel_of(knowledge, generator))

    def slice_of(generator, index):
        start = (0, index * (size * units))
        return ops.slice(generator, start, (depth, size * units))

    def split(hidden):
        """`[batch, rows, d_in]` → `[count, batch, rows, size]`."""
        rows = ops.shape(hidden)[1]
        blocks = ops.reshape(hidden, (-1, rows, count, size))
        return ops.transpose(blocks, (2, 0, 1, 3))

    @ops.custom_gradient
    def product(hidden, knowledge, generator):
        blocks = split(hidden)

        def add(index, total):
            kernel = kernel_of(knowledge, slice_of(generator, index))
            # Summed in float32: many bfloat16 terms would lose digits.
            term = ops.matmul(ops.take(blocks, index, axis=0), kernel)
            return total + ops.cast(term, "float32")

        batch, rows = ops.shape(hidden)[:2]
        total = ops.zeros((batch, rows, units), "float32")
        total = ops.fori_loop(0, count, add, total)
        outputs = ops.cast(total, hidden.dtype)

        def gradient(upstream):
            def of_block(index):
                factor = slice_of(generator, index)
                kernel = kernel_of(knowledge, factor)
                columns = ops.take(blocks, index, axis=0)
                d_hidden = ops.matmul(upstream, ops.swapaxes(kernel, 1, 2))
                d_kernel = ops.matmul(ops.swapaxes(columns, 1, 2), upstream)
                d_kernel = ops.reshape(d_kernel, (-1, size * units))
                d_knowledge = ops.matmul(d_kernel, ops.transpose(factor))
                d_factor = ops.matmul(ops.transpose(knowledge), d_kernel)
                return d_hidden, ops.cast(d_knowledge, "float32"), d_factor

            d_hidden, d_knowledge, d_factor = ops.map(
                of_block, ops.arange(count)
            )
            d_hidden = ops.transpose(d_hidden, (1, 2, 0, 3))
            d_factor = ops.transpose(d_factor, (1, 0, 2))
            return (
                ops.reshape(d_hidden, ops.shape(hidden)),
                ops.cast(ops.sum(d_knowledge, axis=0), knowledge.dtype),
                ops.reshape(d_factor, generator.shape),
            )

        return outputs, gradient

    return product(hidden, knowledge, ops.cast(generator, hidden.dtype))
