"""How far a step of Adam moves a layer of many inputs."""

# Inputs from which on a layer's kernel is held as a multiple. The widest layer
# of a meta unit has as many at the paper's sizes, [E ‖ T] of 2 * 256.
_WIDTH = 512


def step_divisor(input_dim: int) -> float:
    """What a kernel is held times, and its product divided by.

    Adam moves every weight by about the learning rate, whatever its gradient,
    and the moves of a unit's d_in weights add up: a step moves a layer the
    further, the more inputs it has. F of eq. 5 has 18,000 in the demo when it
    holds 40 days side by side, and at the paper's learning rate of 2e-3 expert
    views were 16 times as large after five steps and training diverged in the
    first epoch. Held d_in / 512 times, the kernel starts as the same function
    and is the same under the penalty, and a step moves the layer as far as
    one of 512 inputs. (A learning rate that falls with a layer's inputs:
    Yang et al., "Tensor Programs V: Tuning Large Neural Networks via
    Zero-Shot Hyperparameter Transfer", NeurIPS 2021, table 3.)

    Returns:
        1 up to 512 inputs, d_in / 512 above.

    Example:

    >>> step_divisor(100), step_divisor(5120)
    (1.0, 10.0)
    """
    return max(1.0, input_dim / _WIDTH)
