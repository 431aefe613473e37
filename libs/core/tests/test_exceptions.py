"""The tree of errors, and errors that are also the user's."""

import asyncio
import pickle
import threading

import pytest
from shoal import exceptions as ex
from shoal._failures import failure
from shoal._worker.errors import format_error, payload_of, task_error
from shoal_base.errors import Code

RAYS_NAMES = {
    "ActorAlreadyExistsError", "ActorDiedError", "ActorHandleNotFoundError", "ActorPlacementGroupRemoved", "ActorUnavailableError", "ActorUnschedulableError",
    "AsyncioActorExit", "AuthenticationError", "CrossLanguageError", "GetTimeoutError", "LocalRayletDiedError", "NodeDiedError", "ObjectFetchTimedOutError",
    "ObjectFreedError", "ObjectLostError", "ObjectReconstructionFailedError", "ObjectRefStreamEndOfStreamError", "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException", "OutOfDiskError", "OutOfMemoryError", "OwnerDiedError", "PYTHON", "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable", "RAY_EXCEPTION_TYPES", "RayActorError", "RayCgraphCapacityExceeded", "RayChannelError", "RayChannelTimeoutError",
    "RayDirectTransportError", "RayError", "RaySystemError", "RayTaskError", "ReferenceCountingAssertionError", "RpcError", "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError", "TaskCancelledError", "TaskPlacementGroupRemoved", "TaskUnschedulableError", "UnserializableException",
    "UserCodeException", "WorkerCrashedError",
}  # fmt: skip


class Custom(ValueError):
    def __init__(self, code, *, detail):
        super().__init__(code)
        self.code = code
        self.detail = detail

    def __reduce__(self):
        return _make_custom, (self.code, self.detail)


def _make_custom(code, detail):
    return Custom(code, detail=detail)


class Slotted(Exception):
    __slots__ = ("value",)


def test_every_name_of_ray_is_there():
    assert {name for name in RAYS_NAMES if not hasattr(ex, name)} == set()


def test_every_error_of_the_tree_is_drawn_in_the_docstring():
    drawn = ex.__doc__
    defined = {n for n, v in vars(ex).items() if isinstance(v, type) and issubclass(v, ex.RayError) and v.__module__ == ex.__name__}
    assert {n for n in defined if n not in drawn} == set()


@pytest.mark.parametrize(("error", "base"), [
    (ex.GetTimeoutError, TimeoutError), (ex.RayChannelTimeoutError, TimeoutError), (ex.ActorAlreadyExistsError, ValueError),
    (ex.ReferenceCountingAssertionError, AssertionError), (ex.OwnerDiedError, ex.ObjectLostError), (ex.ActorDiedError, ex.RayActorError),
    (ex.ActorUnavailableError, ex.RayActorError), (ex.StreamingGeneratorReplayInconsistentError, ex.RaySystemError),
])  # fmt: skip
def test_errors_are_what_python_calls_them_too(error, base):
    assert issubclass(error, base) and issubclass(error, ex.RayError)


def raised(error):
    try:
        raise error
    except BaseException as e:
        return e


@pytest.mark.parametrize("cause", [
    ValueError("v"), KeyError("k"), OSError(2, "no such", "/f"), UnicodeDecodeError("utf8", b"x", 0, 1, "bad"), StopIteration(3), ZeroDivisionError(),
    Custom(7, detail="d"), AssertionError("a"), ImportError("i", name="n"), ExceptionGroup("g", [ValueError(1)]), TimeoutError("t"),
])  # fmt: skip
def test_a_task_error_is_an_instance_of_what_was_raised_and_carries_its_attributes(cause):
    error = task_error(raised(cause), "f").as_instanceof_cause()
    assert isinstance(error, ex.RayTaskError) and isinstance(error, type(cause))
    assert error.args == cause.args and error.cause is cause
    for name in ("errno", "filename", "code", "detail", "start", "value", "name", "exceptions"):
        if hasattr(cause, name):
            assert getattr(error, name) == getattr(cause, name)
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, type(cause)) and isinstance(again, ex.RayTaskError) and str(again) == str(error)


def test_slots_of_the_users_class_come_along():
    cause = Slotted("x")
    cause.value = 5
    assert task_error(raised(cause), "f").as_instanceof_cause().value == 5


def test_the_dual_class_is_made_once():
    one, two = (task_error(raised(ValueError(i)), "f").as_instanceof_cause() for i in range(2))
    assert type(one) is type(two) and type(one).__name__ == "RayTaskError(ValueError)"


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), SystemExit(2), GeneratorExit(), asyncio.CancelledError()])
def test_what_would_end_the_callers_thread_or_task_stays_a_plain_task_error(cause):
    assert type(task_error(raised(cause), "f").as_instanceof_cause()) is ex.RayTaskError


def test_a_users_own_base_exception_is_one_at_the_caller_and_an_exception_too():
    class Own(BaseException):
        pass

    error = task_error(raised(Own(7)), "f").as_instanceof_cause()
    assert isinstance(error, Own) and isinstance(error, ex.RayTaskError) and isinstance(error, Exception) and error.args == (7,)


def test_the_text_names_task_process_and_the_users_line():
    def deep():
        raise ValueError("the reason")

    try:
        deep()
    except ValueError as e:
        error = task_error(e, "module.f")
    text = str(error)
    assert "module.f" in text and "pid=" in text and "in deep" in text and text.endswith("ValueError: the reason")
    assert "_worker" not in text


def test_causes_are_in_the_text():
    try:
        try:
            raise KeyError("first")
        except KeyError as e:
            raise ValueError("second") from e
    except ValueError as e:
        text = format_error(e)
    assert "first" in text and "direct cause" in text and "second" in text


def test_an_error_that_cannot_be_pickled_is_carried_as_text():
    class Locked(Exception):
        def __init__(self):
            super().__init__("with a lock")
            self.lock = threading.Lock()

    error = task_error(raised(Locked()), "f")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again.cause, ex.UnserializableException) and "with a lock" in str(again)


def test_an_exception_whose_init_wants_other_arguments_travels_without_it():
    class NeedsTwo(Exception):
        def __init__(self, a, b):
            super().__init__(a)
            self.b = b

    again = pickle.loads(pickle.dumps(task_error(raised(NeedsTwo(1, 2)), "f").as_instanceof_cause()))
    assert isinstance(again, ex.RayTaskError) and type(again.cause).__name__ == "NeedsTwo"
    assert (again.args, again.b) == ((1,), 2)


def test_an_exception_whose_pickle_cannot_be_read_is_carried_as_text():
    class NeedsTwo(Exception):
        def __new__(cls, a, b):
            return super().__new__(cls, a)

        def __init__(self, a, b):
            super().__init__(a)

    again = pickle.loads(pickle.dumps(task_error(raised(NeedsTwo(1, 2)), "f")))
    assert isinstance(again, ex.RayTaskError) and isinstance(again.cause, ex.UnserializableException)


def test_an_error_of_an_error_has_the_first_cause():
    inner = task_error(raised(ValueError("v")), "inner").as_instanceof_cause()
    outer = task_error(raised(inner), "outer").as_instanceof_cause()
    assert isinstance(outer, ValueError) and not isinstance(outer.cause, ex.RayTaskError)
    assert "inner" in str(outer) and "outer" in str(outer)


def test_a_broken_str_does_not_lose_the_error():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    assert payload_of(raised(Broken()), "f").kind == 3


@pytest.mark.parametrize("error", [
    ex.TaskCancelledError("ab"), ex.ActorDiedError("why", "ab"), ex.ActorUnavailableError("gone", "ab"), ex.ObjectLostError("ab", None, "because"),
    ex.OwnerDiedError("ab"), ex.RaySystemError("x", "tb"), ex.RuntimeEnvSetupError("x"), ex.TaskUnschedulableError("x"), ex.OutOfMemoryError("x"),
    ex.ActorOutOfMemoryError("x", "ab"),
    ex.RpcError("x", 5), ex.UnserializableException("tb"), ex.ObjectReconstructionFailedError("ab", 1, "m"), ex.NodeDiedError("n"), ex.GetTimeoutError("t"),
    ex.ActorAlreadyExistsError("x"), ex.WorkerCrashedError("x"), ex.ActorDiedError(), ex.TaskCancelledError(),
])  # fmt: skip
def test_every_error_survives_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert str(ex.RayError.from_bytes(error.to_bytes())) == str(error)


def test_an_actors_death_by_its_init_says_so():
    error = ex.ActorDiedError.from_task_error(ex.RayTaskError("A.__init__", "tb\nValueError: no", ValueError("no"), actor_id="ab"))
    assert error.actor_init_failed and error.actor_id == "ab" and "ValueError: no" in str(error)


@pytest.mark.parametrize("code", [code for code in Code if code not in (Code.OK, Code.BAD_FRAME)])
def test_every_code_becomes_an_error_with_its_message(code):
    for actor in (bytes(16), b"a" * 16):
        error = failure(code, "the cause", b"t" * 16, "mod.f", actor)
        assert isinstance(error, ex.RayError) and "the cause" in str(error)
        pickle.loads(pickle.dumps(error))


def test_deaths_are_told_apart_for_tasks_and_actors():
    assert isinstance(failure(Code.WORKER_CRASHED, "signal 9", b"t" * 16, "f", bytes(16)), ex.WorkerCrashedError)
    assert isinstance(failure(Code.KILLED_BY_USER, "kill()", b"t" * 16, "f", b"a" * 16), ex.ActorDiedError)
    assert isinstance(failure(Code.CANCELLED, "", b"t" * 16, "f", bytes(16)), ex.TaskCancelledError)
    assert isinstance(failure(Code.OWNER_DIED, "pid 3", b"t" * 16, "", bytes(16)), ex.OwnerDiedError)
