"""Cluster files: what is read from them, and that every mistake names its line and key."""

import pytest
from shoal._launcher.config import make_config
from shoal.util.yaml_config import YamlConfigError, parse

LOCAL = """\
cluster_name: demo
provider:
  type: local
  workers: 2
"""
SSH = """\
cluster_name: lab
provider:
  type: ssh
  head_ip: 10.0.0.1
  worker_ips:
    - 10.0.0.2
    - 10.0.0.3
auth:
  ssh_user: shoal
"""


def config(text: str, name: str | None = None):
    return make_config(parse(text, "cluster.yaml"), name)


def error(text: str) -> str:
    with pytest.raises(YamlConfigError) as caught:
        config(text)
    return str(caught.value)


def test_a_local_cluster_has_a_head_and_workers_in_folders_of_their_own():
    found = config(LOCAL + "temp_dir: /tmp/x/\n")
    assert [(node.key, node.directory) for node in found.nodes] == [
        ("head", "/tmp/x/demo/head"), ("worker-1", "/tmp/x/demo/worker-1"), ("worker-2", "/tmp/x/demo/worker-2"),
    ]  # fmt: skip
    assert found.head.head and not any(node.head for node in found.workers)


def test_a_machine_keeps_its_key_when_others_leave_the_file():
    before, after = config(SSH), config(SSH.replace("    - 10.0.0.2\n", ""))
    assert before.workers[1] == after.workers[0]


def test_options_of_nodes_become_options_of_shoal_start():
    text = LOCAL + "head: {num_cpus: 2, resources: {license: 1.5}, http_port: 9000}\nworker: {labels: {zone: a b}}\n"
    found = config(text)
    assert found.head.start == (
        '$SHOAL_COMMAND start --head --host "$SHOAL_NODE_IP" --token-file "$SHOAL_TOKEN_FILE" --port 0 --http-port 9000 --num-cpus 2 '
        """--resources '{"license": 1.5}'""",
    )
    assert found.workers[0].start[0].endswith("""--labels '{"zone": "a b"}'""")
    assert '--address "$SHOAL_HEAD_ADDRESS"' in found.workers[0].start[0]


def test_own_start_commands_are_taken_as_they_are():
    found = config(SSH + "worker_start_commands: [echo a, echo b]\n")
    assert found.workers[0].start == ("echo a", "echo b")
    assert found.head.start[0].startswith("$SHOAL_COMMAND start --head")


def test_setup_commands_of_all_come_before_those_of_the_role():
    found = config(SSH + "setup_commands: [a]\nhead_setup_commands: [h]\nworker_setup_commands: [w]\n")
    assert (found.head.setup, found.workers[0].setup) == (("a", "h"), ("a", "w"))


def test_digests_change_with_what_they_stand_for():
    plain, setup, start = config(SSH).head, config(SSH + "setup_commands: [a]\n").head, config(SSH + "head: {num_cpus: 1}\n").head
    assert plain.setup_digest != setup.setup_digest and plain.start_digest == setup.start_digest
    assert plain.start_digest != start.start_digest and plain.setup_digest == start.setup_digest


def test_another_name_may_be_given():
    assert config(LOCAL, "other").name == "other"


def test_paths_of_this_machine_begin_at_the_file(tmp_path):
    (tmp_path / "key").write_text("k")
    (tmp_path / "app").mkdir()
    path = str(tmp_path / "c.yaml")
    found = make_config(parse(SSH + "  ssh_private_key: key\nfile_mounts: {~/app: ./app}\n", path))
    assert found.auth.private_key == str(tmp_path / "key")
    assert found.head.mounts == {"~/app": str(tmp_path / "app")}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("provider: {type: local}\n", "cluster.yaml:1: cluster_name: is missing"),
        (LOCAL + "setup_comands: []\n", "cluster.yaml:5: setup_comands: unknown key; did you mean 'setup_commands'?"),
        (LOCAL.replace("workers", "wrokers"), "cluster.yaml:4: provider.wrokers: unknown key; did you mean 'workers'?"),
        (SSH.replace("ssh_user", "ssh_usr"), "cluster.yaml:9: auth.ssh_usr: unknown key; did you mean 'ssh_user'?"),
        (LOCAL + "head: {num_cpu: 2}\n", "cluster.yaml:5: head.num_cpu: unknown key; did you mean 'num_cpus'?"),
        (LOCAL + "worker: {storage: memory}\n", "cluster.yaml:5: worker.storage: unknown key"),
        (LOCAL + "head: {num_cpus: two}\n", "cluster.yaml:5: head.num_cpus: a number is wanted, not 'two'"),
        (LOCAL + "head: {num_cpus: -1}\n", "head.num_cpus: -1 is negative"),
        (LOCAL + "head: {labels: {gpu: 1}}\n", 'head.labels.gpu: text is wanted, not 1; write it in quotes: "1"'),
        (LOCAL.replace("local", "aws"), "cluster.yaml:3: provider.type: 'aws': local"),
        (LOCAL.replace("  workers: 2", "  worker_ips: [a]"), "cluster.yaml:4: provider.worker_ips: nodes of type local run on this machine"),
        (LOCAL.replace("2", "-1"), "provider.workers: -1: a number from 0"),
        (LOCAL + "auth: {ssh_user: me}\n", "cluster.yaml:5: auth: is for `provider.type: ssh`"),
        (LOCAL + "file_mounts: {/a: /tmp}\n", "cluster.yaml:5: file_mounts: nodes of type local read this machine's files"),
        (LOCAL + "max_workers: 4\n", "cluster.yaml:5: max_workers: is not for Shoal: the machines of provider.worker_ips are the workers"),
        (LOCAL + "docker: {image: x}\n", "cluster.yaml:5: docker: is not for Shoal"),
        (LOCAL.replace("demo", "a/b"), "cluster_name: 'a/b': a letter, then"),
        (LOCAL.replace("demo", "x" * 21), "at most 20"),
        (LOCAL + "env: {A: 1}\n", 'env.A: text is wanted, not 1; write it in quotes: "1"'),
        (LOCAL + "env: {A-B: x}\n", "env.A-B: is no name of a variable"),
        (LOCAL + "env: {SHOAL_TMPDIR: /x}\n", "env.SHOAL_TMPDIR: is set by the launcher"),
        (LOCAL + "temp_dir: here\n", "temp_dir: 'here': an absolute path is wanted"),
        (LOCAL + "setup_timeout_s: 0\n", "setup_timeout_s: 0 is no time to wait"),
        (LOCAL + "setup_commands: [[a]]\n", "cluster.yaml:5: setup_commands[0]: text is wanted, not a list"),
        (LOCAL + "head: {num_cpus: 1}\nhead_start_commands: [x]\n", "cluster.yaml:5: head: has no effect beside head_start_commands"),
        (SSH.replace("  head_ip: 10.0.0.1\n", ""), "provider.head_ip: is missing"),
        (SSH.replace("10.0.0.3", "10.0.0.2"), "cluster.yaml:7: provider.worker_ips[1]: 10.0.0.2 stands twice, first in line 6"),
        (SSH.replace("10.0.0.3", "-oProxyCommand=x"), "'-oProxyCommand=x' is no name or address of a machine"),
        (SSH.replace("10.0.0.3", "a b"), "'a b' is no name or address"),
        (SSH.replace("ssh_user: shoal", "ssh_user: -x"), "'-x' is no name of a user"),
        (SSH + "  ssh_port: 0\n", "auth.ssh_port: 0 is no port"),
        (SSH + "  ssh_private_key: /no/key\n", "auth.ssh_private_key: /no/key is not there"),
        (SSH + "file_mounts: {/opt/x: /no/such}\n", "file_mounts./opt/x: /no/such is not there on this machine"),
        (SSH + "file_mounts: {opt: /tmp}\n", "file_mounts.opt: a path on the machine is wanted"),
        (SSH + "file_mounts: {/a/../b: /tmp}\n", "a path on the machine is wanted"),
    ],
)
def test_a_mistake_names_the_line_the_key_and_what_to_write(text, told):
    assert told in error(text)
