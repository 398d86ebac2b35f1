from sae_core.errors import ConfigError, UnknownNameError


def test_an_unknown_name_gets_the_nearest_known_one_and_the_remedy() -> None:
    error = UnknownNameError.of("architecture", "topkk", ["standard", "topk"], "To add one, write a file.")
    assert str(error) == (
        "architecture must be one of ['standard', 'topk'], but got 'topkk'. Did you mean 'topk'? To add one, write a file."
    )
    assert isinstance(error, ConfigError) and isinstance(error, ValueError)


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert str(UnknownNameError.of("metric", "zzz", ["l0"])) == "metric must be one of ['l0'], but got 'zzz'."


def test_long_lists_are_cut() -> None:
    message = str(UnknownNameError.of("hook", "x", [f"block{i:02}" for i in range(40)]))
    assert "'block29', '... and 10 more']" in message and "block30" not in message
