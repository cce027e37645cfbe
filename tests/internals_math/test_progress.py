from internals_math import progress


def test_a_listener_hears_every_step_of_its_block_and_nothing_else():
    heard = []
    progress.report("before", 1, 2)
    with progress.listening(lambda *news: heard.append(news)):
        progress.report("training", 1, 2)
        progress.on_step("training")(2, 2, 0.5)
    progress.report("after", 1, 2)
    assert heard == [("training", 1, 2), ("training", 2, 2)]


def test_an_inner_listener_takes_over_for_its_block_only():
    outer, inner = [], []
    with progress.listening(lambda *news: outer.append(news)):
        with progress.listening(lambda *news: inner.append(news)):
            progress.report("a", 1, 1)
        progress.report("b", 1, 1)
    assert (outer, inner) == ([("b", 1, 1)], [("a", 1, 1)])
