"""Whom the node ends when memory is short, how much is in use, and what people are told. Without processes."""

import os
import signal

import pytest
from raylet_world import World, one, only, spec
from shoal_base.errors import Code
from shoal_raylet import effects as do
from shoal_raylet import events as on
from shoal_raylet.config import Config, parse
from shoal_raylet.shortage import Held, Threshold, choose, limit_text, shortage_text
from shoal_raylet.usage import NodeReader, NodeUsage, anonymous_bytes, largest_processes, proportional_bytes, tree
from shoal_raylet.workers import LEAST_MEMORY_BYTES, environment_key, memory_limit

pytestmark = pytest.mark.timeout(30)
MIB = 1 << 20
GIB = 1 << 30


def held(name, owner="", started=0.0, mib=100, retriable=True):
    return Held(name.encode(), 1, name, mib * MIB, owner.encode(), retriable, started)


def victim(*workers):
    chosen = choose(workers)
    return chosen and (chosen.worker.name, chosen.alone)


def test_of_the_owner_with_most_tasks_the_one_that_started_last_is_ended():
    assert victim(held("a1", "a", 1), held("a2", "a", 2), held("b1", "b", 9)) == ("a2", False)
    assert victim(held("a2", "a", 2), held("b1", "b", 9), held("a1", "a", 1)) == ("a2", False), "in any order"


def test_of_two_owners_with_as_many_the_one_that_began_last_pays():
    assert victim(held("a1", "a", 1), held("b1", "b", 2), held("a2", "a", 9), held("b2", "b", 3)) == ("b2", False)


def test_what_cannot_be_retried_goes_last_and_each_by_itself():
    final = [held(f"f{n}", "f", 5 + n, retriable=False) for n in range(4)]
    assert victim(*final, held("a1", "a", 1)) == ("a1", True), "one that can be retried, before four that cannot"
    assert victim(*final) == ("f3", True)


def test_the_last_of_its_owner_is_told_apart():
    assert victim(held("a1", "a", 1)) == ("a1", True)
    assert victim(held("a1", "a", 1), held("a2", "a", 2)) == ("a2", False)


def test_an_idle_worker_that_keeps_much_goes_before_any_task():
    assert victim(held("a1", "a", 1), held("idle", mib=64), held("small", mib=10)) == ("idle", False)
    assert victim(held("a1", "a", 1), held("idle", mib=63)) == ("a1", True)


def test_ending_who_holds_nothing_would_help_nobody():
    assert victim(held("a1", "a", 1, mib=500), held("a2", "a", 2, mib=500), held("a3", "a", 3, mib=31)) == ("a2", False)
    assert victim(held("a1", "a", 1, mib=31)) is None and victim() is None


def test_the_threshold_is_a_share_or_all_but_a_reserve():
    assert Threshold().bytes_of(100 * GIB) == 95 * GIB
    assert Threshold(0.9, 2 * GIB).bytes_of(100 * GIB) == 98 * GIB
    assert Threshold(0.9, 50 * GIB).bytes_of(100 * GIB) == 90 * GIB
    with pytest.raises(ValueError, match="memory_usage_threshold=1.5: more than 0 and at most 1"):
        Threshold(1.5)


def test_the_message_names_who_held_what_the_limit_and_what_to_do():
    chosen = choose([held("train", "a", 1, mib=2048), held("train", "a", 2, mib=1024)])
    text = shortage_text(chosen, NodeUsage(31 * GIB, 32 * GIB, "the machine"), 30 * GIB, [(7, "train", 2 * GIB), (9, "mysqld", GIB)])
    for part in ("31.0 GiB of 32.0 GiB of the machine", "30.0 GiB allowed", "held 1.0 GiB", "pid 7 (train) 2.0 GiB", "pid 9 (mysqld) 1.0 GiB", "memory="):
        assert part in text
    text = limit_text(7, 350 * MIB, 300 * MIB, "by its control group")
    assert "350 MiB at its peak" in text and "the limit is 300 MiB" in text and "Raise memory=" in text


# -- what is in use ---------------------------------------------------------------------------------------------------


def machine(root, total=32, available=8, cgroup=""):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  {total << 20} kB\nMemFree: 1 kB\nMemAvailable:   {available << 20} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


def test_a_machine_without_groups_is_what_counts(tmp_path):
    assert NodeReader(machine(tmp_path)).read() == NodeUsage(24 * GIB, 32 * GIB, "the machine")


def test_the_group_that_binds_first_counts_without_what_can_be_dropped(tmp_path):
    root = machine(tmp_path, cgroup="0::/a/b\n")
    for name, limit, used in (("a", "max", 30 * GIB), ("a/b", 4 * GIB, 4 * GIB)):
        group = root / "sys/fs/cgroup" / name
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\n")
    assert NodeReader(root).read() == NodeUsage(4 * GIB - GIB // 2, 4 * GIB, f"the control group {root}/sys/fs/cgroup/a/b")


def test_a_group_of_version_1_counts_too_and_one_without_limit_does_not(tmp_path):
    root = machine(tmp_path, available=31, cgroup="4:memory:/job\n0::/\n")
    group = root / "sys/fs/cgroup/memory/job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    (group / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n")
    assert NodeReader(root).read().used == GIB - GIB // 4
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert NodeReader(root).read() == NodeUsage(GIB, 32 * GIB, "the machine")


def test_a_small_group_with_little_left_is_watched_though_the_machine_is_fuller(tmp_path):
    root = machine(tmp_path, total=1024, available=512, cgroup="0::/a\n")
    group = root / "sys/fs/cgroup/a"
    group.mkdir(parents=True)
    for name, text in (("memory.max", 4 * GIB), ("memory.current", GIB), ("memory.stat", "inactive_file 0")):
        (group / name).write_text(f"{text}\n")
    usage = NodeReader(root).read()
    assert usage.where == "the machine" and usage.tightest == (GIB, 4 * GIB)
    assert Threshold().pause_s(usage, 0.1, cores=1) == pytest.approx((0.95 * 4 - 1) / 4)
    assert Threshold().pause_s(NodeReader(machine(tmp_path / "other", total=1024, available=512)).read(), 0.1, cores=1) == 2.0


def test_memory_that_is_nearly_short_is_looked_at_as_often_as_was_asked_for():
    short = NodeUsage(31 * GIB, 32 * GIB, "the machine")
    assert Threshold().pause_s(short, 0.25, cores=4) == 0.25
    assert Threshold().pause_s(NodeUsage(GIB, 32 * GIB, "the machine"), 5.0, cores=4) == 5.0, "never more often than was asked for"


def test_what_this_process_holds_grows_with_what_it_touches():
    before = anonymous_bytes(os.getpid())
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    assert 60 * MIB < anonymous_bytes(os.getpid()) - before < 128 * MIB
    assert tree(os.getpid())[0] == os.getpid()
    assert os.getpid() in [pid for pid, _, _ in largest_processes(10_000)]
    assert anonymous_bytes(2**22 + 1) == 0


def test_what_a_process_shares_with_its_child_counts_once_in_proportion():
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        os.write(told, b"x")
        signal.pause()
    try:
        os.read(ready, 1)
        assert child in tree(os.getpid())
        twice = anonymous_bytes(os.getpid()) + anonymous_bytes(child)
        assert twice - proportional_bytes([os.getpid(), child]) > 60 * MIB
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)


# -- the scheduler's part ------------------------------------------------------------------------------------------------


def test_a_worker_ended_for_memory_is_killed_and_its_death_told_with_the_cause():
    world = World(cpus=1)
    grant = one(world.demand(spec=spec()), do.GrantLease)
    assert one(world.feed(on.MemoryExceeded(grant.worker_id, Code.OUT_OF_MEMORY, "short")), do.KillWorker).worker_id == grant.worker_id
    assert not only(world.feed(on.MemoryExceeded(grant.worker_id, Code.MEMORY_LIMIT, "again")), do.KillWorker), "once is enough"
    told = one(world.die(grant.worker_id, cause="was killed by SIGKILL"), do.TellWorkerDied)
    assert (told.code, told.cause, told.intended) == (Code.OUT_OF_MEMORY, "short", False)
    assert world.feed(on.MemoryExceeded(grant.worker_id, Code.OUT_OF_MEMORY, "late")) == []


def test_workers_with_different_limits_are_not_exchanged():
    world = World(cpus=2, resources={"memory": GIB})
    limited = one(world.demand(spec=spec(resources={"memory": 100 * MIB})), do.GrantLease)
    world.give_back(limited)
    plain = one(world.demand(class_id=2, spec=spec()), do.GrantLease)
    again = one(world.demand(class_id=1), do.GrantLease)
    assert plain.worker_id != limited.worker_id == again.worker_id


def test_a_limit_is_part_of_the_environment_and_never_less_than_a_worker_needs():
    assert memory_limit(environment_key("", 300 * MIB * 10_000)) == 300 * MIB
    assert memory_limit(environment_key('{"env_vars":{"A":"1"}}', 300 * MIB * 10_000)) == 300 * MIB
    assert memory_limit(environment_key("", 10_000)) == LEAST_MEMORY_BYTES
    assert memory_limit("") == memory_limit(environment_key('{"env_vars":{"memory_bytes":"1"}}')) == 0


# -- settings -----------------------------------------------------------------------------------------------------------------


def config(**given):
    return Config("dir", ["127.0.0.1:1"], "secrets", [], {}, **given)


def test_settings_come_from_the_config_then_shoals_variables_then_rays():
    both = {"SHOAL_MEMORY_USAGE_THRESHOLD": "0.8", "RAY_memory_usage_threshold": "0.7", "RAY_memory_monitor_refresh_ms": "100"}
    settings = config().watch_settings(both)
    assert (settings.threshold.share, settings.refresh_ms, settings.limits) == (0.8, 100, "auto")
    assert config(memory_usage_threshold=0.5).watch_settings(both).threshold.share == 0.5
    assert config().watch_settings({}).threshold == Threshold(0.95)


@pytest.mark.parametrize(("variables", "wrong"), [
    ({"SHOAL_MEMORY_USAGE_THRESHOLD": "much"}, "SHOAL_MEMORY_USAGE_THRESHOLD='much' is no number"),
    ({"RAY_memory_usage_threshold": "2"}, "memory_usage_threshold=2"),
    ({"SHOAL_MEMORY_MONITOR_REFRESH_MS": "-1"}, "memory_monitor_refresh_ms=-1"),
    ({"SHOAL_MEMORY_LIMITS": "hard"}, "memory_limits='hard': one of auto, poll, off"),
])  # fmt: skip
def test_a_wrong_setting_is_an_error_by_name(variables, wrong):
    with pytest.raises(ValueError, match=wrong.replace("(", r"\(")):
        config().watch_settings(variables)


def test_modules_to_preload_reach_the_zygotes_command_line():
    base = ["--node-dir", "d", "--gcs", "127.0.0.1:1", "--secrets-dir", "s", "--worker-command", '["z"]', "--resources", "{}"]
    assert parse([*base, "--preload", "numpy, pandas"]).zygote_command() == ["z", "--preload", "numpy,pandas"]
    assert parse(base).zygote_command() == ["z"]
