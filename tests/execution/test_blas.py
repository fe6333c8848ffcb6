"""The BLAS limit: shared by overlapping users, lifted by the last."""

from __future__ import annotations

import threading

from threadpoolctl import threadpool_info

from daskgmm.execution.threads import single_threaded_blas


def _threads():
    return {
        info["filepath"]: info["num_threads"]
        for info in threadpool_info()
        if info["user_api"] == "blas"
    }


def test_the_limit_nests_and_is_lifted():
    before = _threads()
    assert before
    with single_threaded_blas():
        with single_threaded_blas():
            assert set(_threads().values()) == {1}
        assert set(_threads().values()) == {1}
    assert _threads() == before


def test_the_limit_holds_until_the_last_of_concurrent_users_leaves():
    before = _threads()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with single_threaded_blas():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with single_threaded_blas():
        thread.start()
        entered.wait()
    assert set(_threads().values()) == {1}
    leave.set()
    thread.join()
    assert _threads() == before
