"""Which of the tests of workloads are in `make test` on one platform only: they wait for seconds, mostly for nothing that
a platform does. `make test-all` has them on both."""

from __future__ import annotations

import pytest

ON_ONE_PLATFORM = {
    "test_a_guest_that_sleeps_costs_nothing",
    "test_absolute_waits_follow",
    "test_alarms_are_never_early_and_hardly_late",
    "test_a_stuck_handler",
    "test_clocks_stand_still_where_that_is_asked_for",
    "test_load",
    "test_no_call_sees_it",
    "test_other_libc",
    "test_programs_do_not_notice",
    "test_the_limit_that_trapline_was_started_under",
    "test_timerfds_keep_in_step",
    "test_where_perf_is_forbidden",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname in ON_ONE_PLATFORM:
            callspec = getattr(item, "callspec", None)
            if callspec is not None and callspec.params.get("platform") == "ptrace":
                item.add_marker(pytest.mark.long)
