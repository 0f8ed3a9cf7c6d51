"""Checks of constructor arguments, shared by the layers."""


def require_positive_int(name, value):
    """Returns `value` if it is a positive integer, raises otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return value


def require_rank(rank):
    """Returns `rank` if it is None or a positive integer."""
    if rank is None:
        return None
    if isinstance(rank, bool) or not isinstance(rank, int) or rank <= 0:
        raise ValueError(
            "`rank` must be a positive integer, or None for a full-rank "
            f"generated kernel. Received: rank={rank!r}"
        )
    return rank


def optional_floats(values):
    """The values as a list of floats, which JSON keeps, or None."""
    return None if values is None else [float(value) for value in values]


def require_one_per_task(name, values, num_tasks):
    """Raises if `values` is a list of another length than `num_tasks`."""
    if values is not None and len(values) != num_tasks:
        raise ValueError(
            f"`{name}` must hold one number per task, {num_tasks}. "
            f"Received: {name}={values}"
        )


def require_positive_ints(name, values, allow_empty=False):
    """Returns `values` as a tuple of positive integers, raises otherwise."""
    expected = "a sequence" if allow_empty else "a non-empty sequence"
    message = (
        f"`{name}` must be {expected} of positive integers. "
        f"Received: {name}={values!r}"
    )
    if isinstance(values, (str, int)) or values is None:
        raise ValueError(message)
    values = tuple(values)
    if not values and not allow_empty:
        raise ValueError(message)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ValueError(message)
    return values
