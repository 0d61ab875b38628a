from megatron_ext.sharing import balanced_shares


def test_the_largest_go_first_to_the_share_with_the_least() -> None:
    assert balanced_shares([1, 5, 3, 3, 2], 2) == [[1, 4], [0, 2, 3]]
    assert balanced_shares([1, 1], 3) == [[0], [1], []]
    assert balanced_shares([4, 4, 4, 4, 9], 2) == [[3, 4], [0, 1, 2]]


def test_everything_is_in_one_share() -> None:
    sizes = [float(size * size % 17) for size in range(40)]
    shares = balanced_shares(sizes, 6)

    assert sorted(number for share in shares for number in share) == list(range(40))
    totals = [sum(sizes[number] for number in share) for share in shares]
    assert max(totals) - min(totals) <= max(sizes)
