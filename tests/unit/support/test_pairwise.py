from itertools import product

from megatron_ext.ponder.config import Method
from tests.support.layouts import LAYOUTS, MODELS, RECOMPUTE, SWEEPS, matrix
from tests.support.pairwise import covering_subset, pairs_of


def test_pairs_of_a_case_join_every_two_factors_with_their_values() -> None:
    assert pairs_of({"b": 2, "a": 1, "c": 3}) == {
        (("a", 1), ("b", 2)),
        (("a", 1), ("c", 3)),
        (("b", 2), ("c", 3)),
    }


def test_the_subset_of_a_full_product_has_all_pairs_in_few_cases() -> None:
    cases = {case: pairs_of(dict(zip("abcd", case, strict=True))) for case in product(range(3), repeat=4)}

    chosen = covering_subset(cases)

    assert set().union(*(cases[case] for case in chosen)) == set().union(*cases.values())
    # Nine is the least that is possible, 81 are all.
    assert 9 <= len(chosen) <= 14


def test_pairs_that_no_case_has_are_not_looked_for() -> None:
    cases = {
        name: pairs_of(factors)
        for name, factors in {
            "first": {"a": 1, "b": 1},
            "second": {"a": 2, "b": 2},
            "again": {"a": 1, "b": 1},
        }.items()
    }

    assert covering_subset(cases) == ["first", "second"]


def test_what_a_case_alone_shows_keeps_it_in_the_subset() -> None:
    assert covering_subset({"much": {1, 2, 3}, "little": {3, 4}, "nothing new": {1, 4}}) == ["much", "little"]


def test_the_matrix_has_every_method_layout_recompute_and_j() -> None:
    cases = matrix()
    sweeping = [case for case in cases if MODELS[case.model].sweeps]

    num_sweeping = sum(method.has_sweeps for method in Method)
    num_kinds = len(Method) - num_sweeping + num_sweeping * len(SWEEPS)

    assert len({(MODELS[case.model].method, case.layout, case.recompute, case.sweeps) for case in cases}) == (
        len(LAYOUTS) * len(RECOMPUTE) * num_kinds
    )
    assert {case.sweeps for case in sweeping} == set(SWEEPS)
    assert {case.model for case in cases} == set(MODELS)
