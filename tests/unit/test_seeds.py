from sae_core.seeds import seed_of


def test_seed_depends_on_every_part_and_on_nothing_else() -> None:
    assert seed_of("rows", 0, 1) == 444930466578020118  # the same on every machine
    assert len({seed_of("rows", 0, 1), seed_of("rows", 1, 0), seed_of("shards", 0, 1), seed_of("rows", 0)}) == 4


def test_seed_is_one_that_torch_takes() -> None:
    assert all(0 <= seed_of(i) < 2**63 for i in range(50))
