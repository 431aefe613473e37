"""The seam: whose session report() and its neighbours find."""

import threading

import pytest
import shoal.train as train
from shoal.train.session import Session, TrainContext, current_session, in_session, use_session


class Kept:
    def __init__(self):
        self.reports = []

    def report(self, metrics, checkpoint=None, checkpoint_dir_name=None):
        self.reports.append(metrics)

    def get_checkpoint(self):
        return None

    def get_context(self):
        return TrainContext(experiment_name="kept")


def test_outside_of_a_training_function_everything_says_so():
    calls = [lambda: train.report({}), train.get_checkpoint, train.get_context, lambda: train.get_dataset_shard("a"), train.collective.barrier,
             train.get_all_reported_checkpoints]  # fmt: skip
    for call in calls:
        with pytest.raises(train.NoSessionError, match="inside of a training function"):
            call()
    with pytest.raises(RuntimeError):
        train.report({})
    assert not in_session()


def test_another_librarys_session_is_used_and_left():
    session = Kept()
    assert isinstance(session, Session)
    with use_session(session):
        train.report({"a": 1})
        assert train.get_context().get_experiment_name() == "kept"
        assert train.get_checkpoint() is None
        assert train.get_all_reported_checkpoints() == []
        with pytest.raises(KeyError, match="without datasets"):
            train.get_dataset_shard("a")
        with pytest.raises(train.NoSessionError, match="workers of a trainer"):
            train.collective.barrier()
    assert session.reports == [{"a": 1}]
    assert not in_session()


def test_sessions_nest():
    outer, inner = Kept(), Kept()
    with use_session(outer):
        with use_session(inner):
            train.report({"a": 1})
        train.report({"a": 2})
    assert (inner.reports, outer.reports) == ([{"a": 1}], [{"a": 2}])


def test_threads_have_their_own_session_or_the_processs():
    here, there = Kept(), Kept()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with use_session(there):
            entered.set()
            leave.wait(30)
            train.report({"from": "there"})

    thread = threading.Thread(target=other)
    with use_session(here):
        thread.start()
        assert entered.wait(30)
        train.report({"from": "here"})
        leave.set()
        thread.join(30)
        inner_thread = threading.Thread(target=lambda: train.report({"from": "thread of the function"}))
        inner_thread.start()
        inner_thread.join(30)
    assert here.reports == [{"from": "here"}, {"from": "thread of the function"}]
    assert there.reports == [{"from": "there"}]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: train.report([1]), TypeError, "dict of metrics, got list"),
        (lambda: train.report({}, checkpoint="/path"), TypeError, "Checkpoint.from_directory"),
        (lambda: train.report({}, checkpoint_dir_name="a/b"), ValueError, "a/b"),
    ],
)
def test_wrong_reports_are_refused(call, error, match):
    with use_session(Kept()), pytest.raises(error, match=match):
        call()


def test_the_current_session_can_be_asked_for():
    with use_session(Kept()) as session:
        assert current_session() is session
