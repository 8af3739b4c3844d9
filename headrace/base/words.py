"""Sizes and types as people read them."""


def size(count: float) -> str:
    """Bytes: in GiB, or MiB below one."""
    return f"{count / 2**30:,.2f} GiB" if abs(count) >= 2**30 else f"{count / 2**20:,.1f} MiB"


def dtype_name(dtype: object) -> str:
    """A torch.dtype without torch's name."""
    return str(dtype).removeprefix("torch.")
