from headrace.base.words import dtype_name, size


def test_sizes_below_a_gib_are_in_mib():
    assert [size(count * 2**20) for count in (3, 1023.4, 1536, -2048, 3 * 2**20)] == [
        "3.0 MiB", "1,023.4 MiB", "1.50 GiB", "-2.00 GiB", "3,072.00 GiB",
    ]  # fmt: skip


def test_types_go_by_their_own_name():
    assert (dtype_name("torch.bfloat16"), dtype_name("float32")) == ("bfloat16", "float32")
