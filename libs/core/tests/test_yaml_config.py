"""YAML that people write: what is wrong is told with file, line, key and the nearest known key."""

import doctest
import pickle
import subprocess
import sys

import pytest
from shoal.util import yaml_config
from shoal.util.yaml_config import YamlConfigError, load, nearest, parse

SWEEP = """\
# a comment
metric: loss
trials:
  max_concurrent: 4
  names: [a, b]
space:
  - {lr: 0.1}
  - lr: 1
"""


def test_data_is_plain_python():
    assert parse(SWEEP).data == {"metric": "loss", "trials": {"max_concurrent": 4, "names": ["a", "b"]}, "space": [{"lr": 0.1}, {"lr": 1}]}


def test_lines_count_from_one_and_a_missing_place_has_the_line_of_what_holds_it():
    config = parse(SWEEP)
    assert config.line(("metric",)) == 2
    assert config.line(("trials", "max_concurrent")) == 4
    assert config.line(("space", 1, "lr")) == 8
    assert config.line(("trials", "grace")) == 3
    assert config.line(("nothing",)) == 2


def test_an_unknown_key_names_line_key_and_the_nearest_known_key():
    with pytest.raises(YamlConfigError, match=r"^sweep\.yaml:4: trials\.max_concurrent: unknown key; did you mean 'max_concurrency'\?$") as caught:
        parse(SWEEP, "sweep.yaml").check_keys(("trials",), {"max_concurrency", "names"})
    assert (caught.value.line, caught.value.place) == (4, "trials.max_concurrent")


def test_an_unknown_key_like_no_other_lists_the_known_ones():
    with pytest.raises(YamlConfigError, match="metric: unknown key; known here: space, xyz"):
        parse(SWEEP).check_keys((), {"xyz", "space"})


def test_a_missing_required_key_is_named_with_the_line_of_its_mapping():
    with pytest.raises(YamlConfigError, match=r"<text>:3: trials\.scheduler: is missing"):
        parse(SWEEP).check_keys(("trials",), {"max_concurrent", "names", "scheduler"}, required={"scheduler"})


def test_a_missing_section_counts_as_an_empty_one():
    parse("a: 1").check_keys(("b",), {"c"})
    with pytest.raises(YamlConfigError, match=r"b\.c: is missing"):
        parse("a: 1").check_keys(("b",), {"c"}, required={"c"})


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("a: [1]", str, "text is wanted, not a list"),
        ("a: 1.20", str, 'text is wanted, not 1.2; write it in quotes: "1.2"'),
        ("a: x", int, "a whole number is wanted, not 'x'"),
        ("a: yes", int, "a whole number is wanted, not True"),
        ("a: 1", bool, "true or false is wanted, not 1"),
        ("a: 1", dict, "a mapping is wanted, not 1"),
        ("b: 1", str, "is missing"),
    ],
)
def test_a_value_of_another_kind_is_told(text, kind, told):
    with pytest.raises(YamlConfigError) as caught:
        parse(text).value(("a",), kind)
    assert caught.value.problem == told


def test_values_have_defaults_whole_numbers_are_numbers_and_null_is_missing():
    config = parse("a: 3\nb:\n")
    assert config.value(("a",), float) == 3.0
    assert config.value(("b",), int, 7) == 7
    assert config.value(("c", 0, "d"), str, "x") == "x"


def test_a_key_that_stands_twice_is_an_error_with_both_lines():
    with pytest.raises(YamlConfigError, match=r"f\.yaml:3: a\.b: stands twice, first in line 2"):
        parse("a:\n  b: 1\n  b: 2\n", "f.yaml")


def test_broken_syntax_names_the_line():
    with pytest.raises(YamlConfigError, match=r"f\.yaml:2: "):
        parse("a: [1,\nb: }\n", "f.yaml")


def test_python_objects_and_second_documents_are_refused():
    with pytest.raises(YamlConfigError, match="constructor"):
        parse("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(YamlConfigError, match=":2: "):
        parse("a: 1\n---\nb: 2\n")


def test_aliases_and_merges_work_and_have_lines():
    config = parse("base: &b {cpus: 1}\nx:\n  <<: *b\n  name: n\ny: *b\n")
    assert config.data["x"] == {"cpus": 1, "name": "n"}
    assert config.line(("x", "cpus")) == 1
    assert config.line(("y", "cpus")) == 1


def test_an_alias_inside_itself_is_refused():
    with pytest.raises(YamlConfigError, match="holds itself"):
        parse("a: &a [1, *a]")


def test_aliases_of_aliases_cost_no_time():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    assert parse("\n".join(lines)).line(("a39", 0, 0)) > 0


@pytest.mark.parametrize("depth", [100, 5000])
def test_absurd_depth_is_refused(depth):
    with pytest.raises(YamlConfigError, match="deep"):
        parse("[" * depth + "]" * depth)


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    config = load(path)
    assert config.data == {}
    with pytest.raises(YamlConfigError, match=r"empty\.yaml:1: a: is missing"):
        config.check_keys((), {"a"}, required={"a"})


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load(tmp_path / "none.yaml")
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    with pytest.raises(YamlConfigError, match="no UTF-8: .* at byte 3"):
        load(binary)


def test_a_date_that_is_none_is_told_without_a_traceback_of_yaml():
    with pytest.raises(YamlConfigError, match="month"):
        parse("a: 2024-13-45")


def test_nearest_does_not_mind_case_and_dashes():
    assert nearest("Max-Workers", ["max_workers"]) == "max_workers"
    assert nearest("zzz", ["max_workers"]) is None


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(YamlConfigError("f", 3, "a.b", "is missing")))
    assert (str(error), error.line) == ("f:3: a.b: is missing", 3)


def test_without_pyyaml_the_error_says_what_to_install():
    code = "import sys; sys.modules['yaml'] = None\nfrom shoal.util.yaml_config import parse\ntry: parse('a')\nexcept ImportError as e: print(e)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "shoal-core[launcher]" in out


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(yaml_config).failed == 0
