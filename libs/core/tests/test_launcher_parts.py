"""The parts of the launcher: shell text, records, mounts, commands, and what ssh's words mean."""

import doctest
import os
import subprocess
import tarfile
import threading
import time

import pytest
from shoal._launcher import mounts, script, ssh
from shoal._launcher.config import Auth
from shoal._launcher.machine import CommandFailed, LauncherError, LocalMachine, ask, interrupt, run
from shoal._launcher.plan import Launched
from shoal._launcher.record import Record, RecordBusy, state_directory

HERE = LocalMachine("here")


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def shell(text: str, stdin: bytes = b"") -> str:
    return run(HERE, text, "a test's command", timeout_s=20, stdin=stdin)


def test_the_examples_in_the_docstrings_are_true():
    for module in (script, ssh):
        assert doctest.testmod(module).failed == 0


# -- shell text -----------------------------------------------------------------------------------------------


def test_values_of_variables_reach_the_command_unchanged():
    value = "a b\n'c' \"d\" $HOME `id` \\"
    assert shell(script.with_environment('printf %s "$A"', {}, {"A": value})) == value


def test_values_of_the_file_may_name_variables_of_the_machine_and_nothing_else_happens_to_them(monkeypatch):
    monkeypatch.setenv("THERE", "x y")
    value = "a\nb 'c' \"d\" $THERE ${THERE}z `id` $(id) $$THERE $5 ${THERE:-n} \\ !"
    seen = "a\nb 'c' \"d\" x y x yz `id` $(id) $THERE $5 ${THERE:-n} \\ !"
    assert shell(script.with_environment('printf %s "$A"', {"A": value}, {})) == seen


def test_the_token_is_written_for_its_owner_alone(tmp_path):
    directory = tmp_path / "temp" / "name" / "head"
    shell(script.place_token(str(directory)), b"secret\n")
    shell(script.place_token(str(directory)), b"secret\n")
    token = directory / "token"
    assert token.read_bytes() == b"secret\n"
    assert [oct(path.stat().st_mode & 0o777) for path in (token, directory, directory.parent, directory.parent.parent)] == ["0o600", "0o700", "0o700", "0o700"]
    assert os.listdir(directory) == ["token"]


def test_a_folder_that_others_may_write_is_refused(tmp_path):
    (tmp_path / "temp").mkdir(mode=0o777)
    os.chmod(tmp_path / "temp", 0o777)
    with pytest.raises(CommandFailed, match="can be written by others"):
        shell(script.place_token(str(tmp_path / "temp/name/head")), b"secret")


def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "temp").symlink_to(tmp_path / "real")
    with pytest.raises(CommandFailed, match="not this user's own folder"):
        shell(script.place_token(str(tmp_path / "temp/name/head")), b"secret")


def test_what_lies_behind_a_link_is_neither_believed_nor_removed(tmp_path):
    (tmp_path / "real/c/head").mkdir(parents=True)
    (tmp_path / "temp").symlink_to(tmp_path / "real")
    for text in (script.stop(str(tmp_path / "temp/c/head"), "true"), script.observe(str(tmp_path / "temp/c/head"), "true")):
        with pytest.raises(CommandFailed, match="not this user's own folder"):
            shell(text)
    assert (tmp_path / "real/c/head").exists()


def test_stopping_where_nothing_is_does_nothing_and_needs_no_shoal(tmp_path):
    shell(script.stop(str(tmp_path / "none/x/head"), "no-such-command"))


def test_stopping_removes_the_folder_and_the_clusters_when_it_was_the_last(tmp_path):
    one, two = tmp_path / "t/c/head", tmp_path / "t/c/worker-1"
    for directory in (one, two):
        shell(script.place_token(str(directory)), b"secret")
    shell(script.stop(str(one), "no-such-command"))
    assert two.exists() and not one.exists()
    shell(script.stop(str(two), "no-such-command"))
    assert os.listdir(tmp_path / "t") == []


def test_observing_where_no_folder_is_needs_no_shoal(tmp_path):
    assert ask(HERE, script.observe(str(tmp_path / "none"), "no-such-command"), "looking", timeout_s=20) == "[]\n"


# -- commands -------------------------------------------------------------------------------------------------


def test_a_failed_command_names_host_command_code_and_its_last_lines():
    with pytest.raises(CommandFailed) as caught:
        run(HERE, "seq 1 50; echo broken >&2; exit 3", "setup_commands 1 of 2: make", timeout_s=20)
    text = str(caught.value)
    assert text.startswith("on here: setup_commands 1 of 2: make\n  ended with code 3; its last output:\n")
    assert text.endswith("    50\n    broken")
    assert "    31\n" not in text and "    32\n" in text


def test_a_command_that_is_missing_is_told_as_such():
    with pytest.raises(CommandFailed, match=r"code 127 \(command not found\)"):
        shell("no-such-command-at-all")


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match="did not end within 0.5 s; its last output:\n    begun"):
        run(HERE, f"sleep 100 & echo $! > {tmp_path}/pid; echo begun; sleep 100", "slow", timeout_s=0.5)
    assert time.monotonic() - begun < 10
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while lives(child):
        assert time.monotonic() < deadline, "the command's child lives on"


def test_what_a_command_leaves_in_the_background_does_not_hold_it_up():
    begun = time.monotonic()
    pid = int(shell("sleep 30 & echo $!"))
    assert time.monotonic() - begun < 10
    os.kill(pid, 9)


def test_an_interrupt_ends_commands_that_other_threads_wait_for():
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(CommandFailed, match="code 137"):
            run(HERE, "sleep 100", "slow", timeout_s=60)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while not ended.wait(0.02):
        interrupt()
        assert time.monotonic() < deadline
    thread.join()


def test_an_answer_is_told_apart_from_what_a_profile_prints():
    class Chatty(LocalMachine):
        def execute(self, script, *, timeout_s, stdin=None):
            return super().execute(f"echo Welcome!\n{script}", timeout_s=timeout_s, stdin=stdin)

    assert ask(Chatty("here"), "echo '[1]'", "asking", timeout_s=20) == "[1]\n"


# -- records --------------------------------------------------------------------------------------------------

NODE = Launched("10.0.0.1", "/tmp/x", True, "s", "t")


def test_a_record_is_read_back_and_leaves_nothing_when_removed(tmp_path):
    record = Record("demo", tmp_path / "shoal" / "clusters")
    with record.locked():
        record.provider = "ssh"
        record.note("h", NODE)
        record.note("w", NODE)
        record.note("w", None)
    again = Record("demo", tmp_path / "shoal" / "clusters")
    assert (again.provider, again.nodes) == ("ssh", {"h": NODE})
    assert again.path.stat().st_mode & 0o777 == 0o600
    with again.locked():
        again.remove()
    assert os.listdir(tmp_path) == []


def test_two_commands_on_one_cluster_wait_for_each_other(tmp_path):
    first, second = Record("demo", tmp_path), Record("demo", tmp_path)
    with first.locked():
        with pytest.raises(RecordBusy, match="another command is at work on the cluster demo"), second.locked(timeout_s=0.1):
            pass
        with Record("other", tmp_path).locked(timeout_s=0.1):
            pass
    with second.locked(timeout_s=0.1):
        pass


def test_whoever_waited_for_a_removed_record_locks_the_new_one(tmp_path):
    first, second = Record("demo", tmp_path), Record("demo", tmp_path)
    entered, done = threading.Event(), threading.Event()

    def wait() -> None:
        with second.locked(timeout_s=20):
            entered.set()
            done.wait(20)

    with first.locked():
        thread = threading.Thread(target=wait)
        thread.start()
        first.remove()
        first.directory.mkdir(parents=True, exist_ok=True)
    assert entered.wait(20)
    try:
        with pytest.raises(RecordBusy), first.locked(timeout_s=0.1):
            pass
    finally:
        done.set()
        thread.join()


def test_a_broken_record_names_its_file(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/record.json").write_text("{")
    with pytest.raises(LauncherError, match=r"demo/record\.json cannot be read"):
        Record("demo", tmp_path)


def test_records_lie_in_the_users_state_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == tmp_path / "shoal/clusters"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local/state/shoal/clusters"


# -- mounts ---------------------------------------------------------------------------------------------------


def test_a_digest_changes_with_names_modes_and_contents(tmp_path):
    source = tmp_path / "app"
    (source / "inner").mkdir(parents=True)
    (source / "inner/a.py").write_text("1")
    seen = [mounts.digest({"/opt/app": str(source)})]
    for change in (
        lambda: (source / "inner/a.py").write_text("2"),
        lambda: os.chmod(source / "inner/a.py", 0o700),
        lambda: os.rename(source / "inner/a.py", source / "inner/b.py"),
        lambda: (source / "link").symlink_to("inner"),
    ):
        change()
        seen.append(mounts.digest({"/opt/app": str(source)}))
    assert len(set(seen)) == len(seen)
    assert mounts.digest({"/opt/app": str(source)}) == seen[-1] and mounts.digest({}) == ""


def test_a_folder_and_a_file_arrive_under_their_new_names(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    (source / "a.py").write_text("print(1)")
    os.mkfifo(source / "pipe")
    target = tmp_path / "there/app 1"
    with open(tmp_path / "t.tar", "w+b") as file:
        mounts.pack(str(source), str(target), file)
        file.seek(0)
        subprocess.run(["bash", "-c", script.unpack(str(target))], stdin=file, check=True, timeout=20)
    assert os.listdir(target) == ["a.py"]
    with open(tmp_path / "t2.tar", "w+b") as file:
        mounts.pack(str(source / "a.py"), "~/b.py", file)
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            assert tar.getnames() == ["b.py"]


def test_more_than_the_limit_is_refused_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(mounts, "MAX_BYTES", 10)
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(mounts.MountTooLarge, match="big"):
        mounts.digest({"/opt/x": str(tmp_path)})


# -- ssh's words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("me@h: Permission denied (publickey).", "does me there accept the key /k?"),
        ("ssh: Could not resolve hostname nohost: Name or service not known", "is its name right?"),
        ("ssh: connect to host h port 2222: Connection refused", "auth.ssh_port, 2222"),
        ("ssh: connect to host h port 2222: Connection timed out", "is the machine running"),
        ("@@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", "ssh-keygen -R"),
    ],
)
def test_words_of_ssh_come_with_what_to_look_at(words, hint):
    told = ssh.explain(words, Auth("me", "/k", 2222))
    assert hint in told and words.splitlines()[-1] in told
