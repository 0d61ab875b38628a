from data_prep.splits import HELDOUT, TRAIN, name_fraction, split_of

NAMES = [f"folder/document_{number}.txt" for number in range(4000)]


def test_the_split_follows_from_the_name_alone() -> None:
    # fixed values: a change of the rule would move text from one split to the other
    fractions = {"abc.py": 0.7691947, "json/__init__.py": 0.5416964, "os.py": 0.8509487}
    for name, fraction in fractions.items():
        assert abs(name_fraction(name) - fraction) < 1e-6
        assert split_of(name, fraction + 1e-6) == HELDOUT
        assert split_of(name, fraction - 1e-6) == TRAIN


def test_about_the_asked_share_is_held_out() -> None:
    share = sum(split_of(name, 0.05) == HELDOUT for name in NAMES) / len(NAMES)
    assert 0.035 < share < 0.065


def test_a_larger_fraction_only_adds_held_out_documents() -> None:
    small = {name for name in NAMES if split_of(name, 0.05) == HELDOUT}
    large = {name for name in NAMES if split_of(name, 0.2) == HELDOUT}
    assert small < large


def test_no_document_is_held_out_at_fraction_zero() -> None:
    assert {split_of(name, 0.0) for name in NAMES} == {TRAIN}
