"""A storm of events leaves a bounded number of lines, and a count of the others."""

from shoal_broker.server.log_budget import Budget, LogBudget


def test_a_storm_is_cut_to_its_budget_and_what_was_left_out_is_counted():
    budget = LogBudget({"refused": Budget(10, 0.5), "gone": Budget(5, 1)}, 0.0)
    written = sum(budget.may_log("refused", n / 1000) for n in range(10_000))
    assert written == 10 + 4
    assert budget.may_log("gone", 9.9995)
    assert list(budget.left_out(9.9995)) == []
    assert list(budget.left_out(12.0)) == [("refused", 10_000 - 14)]
    assert list(budget.left_out(60.0)) == []


def test_an_hour_of_storm_is_as_many_lines_as_an_hour_allows():
    budget = LogBudget({"refused": Budget(50, 1)}, 0.0)
    lines = 0
    for second in range(3_600):
        lines += sum(budget.may_log("refused", second + n / 100) for n in range(100))
        lines += len(list(budget.left_out(second + 1)))
    assert lines <= 50 + 3_600


def test_quiet_times_do_not_save_up_more_than_the_burst():
    budget = LogBudget({"gone": Budget(3, 1)}, 0.0)
    assert sum(budget.may_log("gone", 1_000.0) for _ in range(10)) == 3
