from pipeline.evaluation.tasks import PAPERS_7, PAPERS_9, TASK_GROUPS, expand_task_names


def test_the_groups_of_the_papers_have_as_many_tasks_as_their_names_say() -> None:
    assert [len(set(TASK_GROUPS[name])) for name in (PAPERS_7, PAPERS_9)] == [7, 9]
    assert set(TASK_GROUPS[PAPERS_7]) < set(TASK_GROUPS[PAPERS_9])


def test_a_group_expands_to_its_tasks_without_duplicates() -> None:
    names = expand_task_names(["mine", "papers-7", "papers-9", "piqa"])

    assert names[:2] == ("mine", "lambada_openai")
    assert sorted(names) == sorted({"mine", *TASK_GROUPS[PAPERS_9]})
