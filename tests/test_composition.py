"""Options to components: every YAML, every mistake."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, fields, make_dataclass

import pytest
from conftest import QUICK
from omegaconf import OmegaConf

from bert_infer import compose
from bert_infer.batching import Batching
from bert_infer.cli.help import help_text
from bert_infer.cli.request import Request
from bert_infer.configuration import composition
from bert_infer.configuration.composition import (
    COMPONENTS,
    SECTIONS,
    component,
    config_from,
    resolve,
)
from bert_infer.configuration.options import CONF, groups, options, options_with, values
from bert_infer.configuration.overrides import (
    assigned,
    check_agreement,
    check_overrides,
    expand_short_forms,
    sweep,
    value_of,
)
from bert_infer.configuration.schema import checked
from bert_infer.configuration.settings import Settings, SweepSettings
from bert_infer.errors import OptionError, RefusedError
from bert_infer.report.entries import asked

EVERY_OPTION = [(group, option) for group in COMPONENTS for option in options(group)]


def having(group, field):
    """Return the options of ``group`` that have ``field``, as a message lists them."""
    return " and ".join(f"{group}={option}" for option in options_with(group, field))


@pytest.mark.parametrize(("group", "option"), EVERY_OPTION)
def test_every_yaml_composes_builds_and_hides_no_field(group, option):
    yaml = OmegaConf.load(CONF / group / f"{option}.yaml")
    needs = [f"{group}.{key}=some.csv" for key in yaml if OmegaConf.is_missing(yaml, key)]
    config = config_from([f"{group}={option}", *needs])
    built = component(group, config[group], COMPONENTS[group])
    assert {*yaml} - {"_target_"} == {field.name for field in fields(built)}
    assert options(group)[option], "its first comment is its line in --help"
    with pytest.raises(FrozenInstanceError):
        built.anything = 1


def test_every_group_is_a_component_and_every_value_a_setting():
    assert {*groups()} - {"experiment"} == {*COMPONENTS}
    settings = {field.name for kind in (Settings, SweepSettings) for field in fields(kind)}
    assert {*values()} == settings | {*SECTIONS}
    for key, schema in SECTIONS.items():
        assert {*config_from([])[key]} == {field.name for field in fields(schema)}


@pytest.mark.parametrize("study", options("experiment"))
def test_every_experiment_composes(study):
    compose([f"experiment={study}"])


def test_the_default_is_the_contracts():
    runner = compose()
    assert runner.settings == Settings(
        batch=1, iterations=1, warmup="auto", max_length=None, seed=0
    )
    assert runner.input.text == ("Hello world!",)
    names = [runner.dtype.name, runner.batching.name, runner.graph.name, runner.device.name]
    assert names == ["fp32", "padded", "auto", "auto"]
    assert runner.model.name == "bert-large-uncased"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dtype=bf61"], ["dtype=bf61", "fp32", "Did you mean bf16?"]),
        (["device=gpu"], ["device takes auto, ", "Did you mean cuda?"]),
        (["dtype=Float32"], ["dtype takes fp32, ", "Did you mean fp32?"]),
        (["graph=cuda"], ["graph takes auto, ", "Did you mean cuda_graphs?"]),
        (["bach=2"], ["bach", "batch", "Did you mean batch?"]),
        (["batch_size=2"], ["batch_size", "Did you mean batch?"]),
        (["batching.max_token=5", "batching=token_budget"], ["Did you mean batching.max_tokens?"]),
        (["batch=abc"], ["batch=abc", "whole number"]),
        (["batch=1.5"], ["batch=1.5", "whole number"]),
        (["batch=true"], ["batch=True", "whole number"]),
        (["batch=0"], ["batch=0", "from 1"]),
        (["batch=null"], ["batch=None", "whole number"]),
        (["batch=99999999999999999999"], ["batch=99999999999999999999", "2147483647"]),
        (["batch=[1,2"], ["batch=[1,2", "whole number"]),
        (["batch.x=2"], ["batch.x"]),
        (["batch=${nope}"], ["nope"]),
        (["graph.mode=default"], ["graph.mode", "graph=compile"]),
        (["device=cpu", "device.threads=99999"], ["device.threads=99999", "1024"]),
        (["input=synthetic", "input.texts=1000000000000"], ["input.texts=1000000000000"]),
        (["iterations=-1"], ["iterations=-1"]),
        (["warmup=soon"], ["warmup=soon", "auto"]),
        (["warmup=-1"], ["warmup=-1"]),
        (["seed=-1"], ["seed=-1"]),
        (["max_length=2"], ["max_length=2"]),
        (["until.relative_ci=2"], ["until.relative_ci=2.0", "(0, 1)"]),
        (["until.max_s=0"], ["until.max_s=0.0", "seconds"]),
        (["until.max=0"], ["until.max", "Did you mean until.max_s?"]),
        (["drift.texts=-1"], ["drift.texts=-1"]),
        (["drift.min_cosine=high"], ["drift.min_cosine=high", "a number or null"]),
        (["drift.min_cosine=0.9", "drift.texts=0"], ["drift.texts=0", "drift.min_cosine"]),
        (["device=cpu", "device.threads=0"], ["device.threads=0"]),
        (["device=cpu", "device.keep_memory=maybe"], ["keep_memory=maybe", "true or false"]),
        (["device=cuda", "device.fuses=maybe"], ["device.fuses=maybe", "true, false or null"]),
        (["device=cuda", "device.in_flight=0"], ["device.in_flight=0", "from 1"]),
        (["batching=by_length", "batching.edges=[a]"], ["batching.edges", "whole numbers"]),
        (["batching=by_length", "batching.edges=[64,32]"], ["batching.edges", "increasing"]),
        (["output.save=all"], ["output.save=all", "none, hidden_states, pooled"]),
        (["input=lines"], ["input.path", "no default"]),
        (["graph=compile", "graph.mode=fast"], ["graph.mode=fast", "reduce_overhead"]),
        (["nonsense"], ["nonsense", "KEY=VALUE"]),
        (["+extra=1"], ["extra", "no key"]),
        (["+input.extra=1"], ["input.extra", "no key"]),
        (
            ["input=lines", "text=hello"],
            [f"belongs to {having('input', 'text')}. Here there are: input.path."],
        ),
        (
            ["input.path=texts.txt"],
            [f"belongs to {having('input', 'path')}.", "Choose input=lines"],
        ),
        (["engine=onnxruntime"], [f"engine takes {', '.join(options('engine'))}."]),
        (["experiment=raged"], ["experiment takes null, ", "Did you mean ragged?"]),
        (["+dtype=bf16"], ["+dtype=bf16", "Write dtype=bf16."]),
        (["+experiment=null"], ["+experiment=null", "Write experiment=null."]),
        (["until={foo:3}"], ["until.foo is no key here", "until.relative_ci, until.max_s"]),
        (["until=[1]"], ["until=[1]", "takes keys of its own: until.relative_ci"]),
        (["until=5"], ["until=5", "takes keys of its own: until.relative_ci"]),
        (["until=null"], ["until=None", "takes keys of its own: until.relative_ci"]),
        (["until=${nope}"], ["until: ", "nope", "literal"]),
        (["~until"], ["until=None", "takes keys of its own: until.relative_ci"]),
        (["model=tiny", "drift=5"], ["drift=5", "takes keys of its own: drift.texts"]),
        (["drift=null"], ["drift=None", "takes keys of its own: drift.texts"]),
        (["batch=${oc.env:HOME}"], ["batch=/", "takes a whole number.\n  While", "${oc.env:HOME}"]),
        (["hydra=null"], ["hydra=null", "keys of its own", "hydra.run.dir=DIR"]),
        (["hydra.job=null"], ["hydra.job=null", "takes keys of its own: hydra.job.name"]),
        (["hydra.run=null"], ["hydra.run=null", "takes keys of its own: hydra.run.dir"]),
        (["hydra.sweep=3"], ["hydra.sweep=3", "takes keys of its own: hydra.sweep.dir"]),
        (["hydra.mode=foo"], ["hydra.mode=foo", "takes one of RUN, MULTIRUN or null"]),
        (["hydra.job.num=x"], ["hydra.job.num=x", "takes a whole number"]),
        (["hydra.job.env_set=5"], ["hydra.job.env_set=5", "takes keys of its own"]),
        (["+hydra.job.env_set.A=[1]"], ["env_set.A=[1]", "a value of another kind", "string"]),
        (["hydra.job.env_copy=5"], ["hydra.job.env_copy=5", "takes a list of strings"]),
        (["hydra.job.env_copy=[NO_SUCH]"], ["hydra.job.env_copy=NO_SUCH", "that are set"]),
        (["hydra={job:{num:x}}"], ["hydra={job:{num:x}}", "hydra.job.num takes a whole number"]),
        (["~hydra.run"], ["~hydra.run", "takes keys of its own: hydra.run.dir"]),
        (["hydra.job.foo=1"], ["hydra.job.foo is no key here", "hydra.job.name"]),
        (["hydra/foo=bar"], ["hydra/foo is no key here", "hydra/launcher"]),
        (["hydra/launcher=null"], ["hydra/launcher=null", "by its name"]),
        (["hydra.launcher=null"], ["hydra.launcher=null", "by its name"]),
    ],
    ids=lambda case: case[0] if isinstance(case, list) else None,
)
def test_mistakes_name_the_key_what_was_given_and_what_is_allowed(overrides, says):
    with pytest.raises(RefusedError) as refused:
        compose(overrides)
    for part in says:
        assert part in str(refused.value)


def test_paths_and_columns_are_taken_as_they_are():
    chosen = compose(["input=table", "input.path=/tmp/münchen (1).csv", "input.column=täxt ~"])
    assert (chosen.input.path, chosen.input.column) == ("/tmp/münchen (1).csv", "täxt ~")


@pytest.mark.parametrize("name", ["2026_11_28", "1e5", "1.10", "12"])
def test_names_that_look_like_numbers_are_taken_as_they_are(name):
    """Seen to fail: 20261128, 100000.0 and 1.1."""
    given = ["input=table", "input.path=a.csv", f"input.column={name}", f"model.revision={name}"]
    chosen = compose([*given, "dtype=fp8", f"dtype.measurements={name}"])
    found = (chosen.input.column, chosen.dtype.measurements, chosen.model.revision)
    assert found == (name, name, name)
    own = expand_short_forms([f"hydra.run.dir={name}", f"resume={name}", "seed=1_0"])
    config = config_from(own, job=0)
    assert (config.hydra.run.dir, str(config.resume), config.seed) == (name, name, 10)
    cpu = compose(["device=cpu", "device.threads=1_0", "device.keep_memory=FALSE"]).device
    assert (cpu.threads, cpu.keep_memory) == (10, False)
    as_read = ["device.threads=10", "device.keep_memory=false"]
    assert expand_short_forms(as_read) == as_read, "Nothing that is recorded gets quotes for it."
    assert compose(["input=synthetic", "input.mu=5e0"]).input.mu == 5.0


def test_a_program_that_uses_hydra_itself_is_not_disturbed(tmp_path):
    from hydra import compose as theirs
    from hydra import initialize_config_dir

    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose(["batch=3"]).settings.batch == 3
        assert theirs("mine").a == 1


def test_threads_compose_at_the_same_time():
    with ThreadPoolExecutor(4) as pool:
        runners = list(pool.map(lambda batch: compose([f"batch={batch}"]), range(1, 9)))
    assert [runner.settings.batch for runner in runners] == list(range(1, 9))


@pytest.mark.parametrize(
    "target",
    [
        "subprocess.Popen",
        "bert_infer.measuring.environment.subprocess.Popen",
        "bert_infer.batching.PaddedBatch",  # ours, but imported there from elsewhere
        "bert_infer.measuring.environment.digest",
        "bert_infer.nowhere.Thing",
        "bert_infer.__main__.main",
        "bert_infer",
        "None",
    ],
)
def test_targets_outside_the_package_are_refused(target):
    with pytest.raises(RefusedError, match="_target_"):
        compose([f"batching._target_={target}"])


def test_a_class_without_what_its_base_declares_is_refused(monkeypatch):
    """Seen to fail: an AttributeError, once the model had been looked for."""
    node = OmegaConf.create({"_target_": "my_package.Mine"})
    for has, says in (
        ({"plan": None}, "my_package.Mine has no name"),
        ({}, "abstract method plan"),
    ):
        mine = make_dataclass("Mine", [], bases=(Batching,), namespace=has)
        monkeypatch.setattr(composition, "resolve", lambda _target, _group, mine=mine: mine)
        with pytest.raises(RefusedError, match=says):
            component("batching", node, Batching)


def test_a_component_with_a_list_is_a_key_of_caches():
    """Seen to fail: unhashable, a traceback when an input or a device had such a field."""
    schema = make_dataclass("Mine", [("words", list[str]), ("pairs", list[list[int]])], frozen=True)
    mine = checked(schema, {"words": ["a"], "pairs": [[1]]}, "")
    assert {mine: 1}[mine]
    assert (mine.words, mine.pairs) == (("a",), ((1,),))


def test_a_component_of_another_group_is_refused():
    with pytest.raises(OptionError, match="a component for dtype"):
        compose(["dtype._target_=bert_infer.graphs.Eager"])


def test_other_packages_add_components_through_their_entry_point(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(
        "from dataclasses import dataclass\n"
        "from bert_infer.batching import Padded\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Padded):\n"
        "    name = 'mine'\n"
    )
    metadata = tmp_path / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[bert_infer.components]\nmine = elsewhere:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("elsewhere.Mine", "batching").name == "mine"
    for wrong in ("elsewhere.Other", "elsewhere:Mine"):
        with pytest.raises(OptionError, match=r"bert_infer\.components: .*elsewhere\.Mine"):
            resolve(wrong, "batching")
    (tmp_path / "batching").mkdir()
    (tmp_path / "batching" / "mine.yaml").write_text("_target_: elsewhere.Mine\n")
    assert compose(["batching=mine"], config_dir=tmp_path).batching.name == "mine"
    # Seen to fail: a traceback.
    (tmp_path / "batching" / "mine.yaml").write_text("_target_: [\n")
    with pytest.raises(RefusedError, match=r"no YAML: .*mine\.yaml"):
        compose(["batching=mine"], config_dir=tmp_path)
    (tmp_path / "elsewhere.py").write_text("import missing\n")
    sys.modules.pop("elsewhere")
    importlib.invalidate_caches()
    with pytest.raises(RefusedError, match="cannot be loaded: No module named 'missing'"):
        resolve("elsewhere.Mine", "batching")
    sys.modules.pop("elsewhere", None)


TEXTS = [
    "Good morning BERT!",
    "Hello, world",
    "Don't panic",
    'She said "no".',
    "what (is) this: ok?",
    "back\\slash and trailing\\",
    "${oc.env:HOME} costs $5",
    "\\${not} 'quoted'",
    "{a: 1}",
    "[unclosed",
    "007",
    "null",
    "1e3",
    " spaces kept ",
    "emoji 🙂, CJK 漢字",
    "key=value",
    '"half quoted',
    "two\nlines",
    "choice(a,b)",
    "'quoted' start",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["text", "input.text"])
def test_a_text_is_taken_as_it_is(key, text):
    assert compose([f"{key}={text}"]).input.text == (text,)


def test_overrides_are_a_list():
    """Seen to fail: "d is neither KEY=VALUE nor a command"."""
    with pytest.raises(RefusedError, match="takes a list of overrides: dtype=bf16"):
        compose("dtype=bf16")


def test_lists_and_sweeps_of_texts_are_written_in_hydras_grammar():
    assert compose(["text=[one, two three]"]).input.text == ("one", "two three")
    assert compose(["text=['a, b', \"c's\"]"]).input.text == ("a, b", "c's")
    assert compose(["text='quoted, whole'"]).input.text == ("quoted, whole",)
    runs = sweep(expand_short_forms(["text='a, b','c'", "batch=1,2"]))
    assert [compose(run).input.text for run in runs] == [("a, b",)] * 2 + [("c",)] * 2


def test_sweeps_are_expanded_as_hydra_does():
    assert sweep(["dtype=fp32,bf16", "batch=range(1,3)", "seed=7"]) == [
        ["dtype=fp32", "batch=1", "seed=7"],
        ["dtype=fp32", "batch=2", "seed=7"],
        ["dtype=bf16", "batch=1", "seed=7"],
        ["dtype=bf16", "batch=2", "seed=7"],
    ]
    those = [f"dtype={option}" for option in options("dtype") if option.startswith("bf")]
    assert [run[0] for run in sweep(["dtype=glob(bf*)"])] == those


def test_patterns_choose_among_options_of_ones_own_too(tmp_path):
    (tmp_path / "dtype").mkdir()
    (tmp_path / "dtype" / "fp16_mine.yaml").touch()
    given = ["dtype=glob(fp16*)"]
    check_overrides(given, [str(tmp_path)])
    assert sweep(given, [str(tmp_path)])[-1] == ["dtype=fp16_mine"]
    assert ["dtype=fp16"] in sweep(given, [str(tmp_path)])


@pytest.mark.parametrize("value", ["a/b-1", "1", "a,b", "it's", "true", "ä", "a=b", "[a]", "null"])
def test_a_string_that_is_assigned_is_read_as_that_string(value):
    """Seen to fail: all of them without quotes."""
    written = assigned("resume", value)
    assert str(value_of(written)) == value
    assert ("'" in written) == (value not in {"a/b-1", "1"})


def test_an_override_is_recorded_as_it_can_be_given_again(command):
    """Seen to fail: its text was another one, or could not be resumed."""
    text = "text=it costs ${batch} or ${x}"
    assert command(*QUICK, text).returncode == 0
    swept = ("--multirun", *QUICK, text, "batch=1,2")
    where = ("hydra.sweep.dir=swept", "hydra.sweep.subdir=run_${hydra.job.num}")
    assert command(*swept, *where).returncode == 0
    resumed = command("--multirun", "resume=swept", "batch=1,2,3")
    assert resumed.returncode == 0, resumed.stderr
    assert "2 of 3 runs are there already" in resumed.stdout
    found = command.metrics()
    # Seen to fail: numbered from 0 by the resumption, where names have more in them than a number.
    assert [run.name for run in command.runs()[1:]] == ["run_0", "run_1", "run_2"]
    assert [m["choice"]["batch"] for m in found] == [1, 1, 2, 3]
    assert len({m["provenance"]["input"]["sha256"] for m in found}) == 1
    for written in found:
        overrides = [o for o in written["run"]["overrides"] if not o.startswith("drift")]
        again = compose(overrides).prepare()
        assert again.tokens.sha256 == written["provenance"]["input"]["sha256"]


def test_a_sweep_that_resumes_nothing_is_a_sweep():
    """Seen to fail: "resume=null is no sweep"."""
    request = Request.of(["--multirun", "resume=null", "model=tiny", "batch=1,2"])
    assert len(request.plan().runs) == 2


def test_help_lists_every_group_and_option_the_default_first():
    """Seen to fail: the first experiment was said to be the default, which is none."""
    text = help_text("run")
    for group, default in groups().items():
        assert f"\n{group}=" in text
        listed = text.partition(f"\n{group}=\n")[2].partition("\n\n")[0].splitlines()
        names = [line.split()[0] for line in listed]
        assert names[0] == default
        assert {*names} == {default, *options(group)}
    for key in [*(f.name for f in fields(Settings)), "until.relative_ci", "drift.min_cosine"]:
        assert f"  {key}=" in text


def test_an_experiment_overrides_the_values_and_is_overridden_by_the_user():
    assert compose(["experiment=ragged"]).settings.iterations == 5
    assert compose(["experiment=ragged", "iterations=2"]).settings.iterations == 2
    assert compose(["experiment=ragged", "batching=padded"]).batching.name == "padded"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("itertions: 50", r"itertions is no key here.*Did you mean iterations\?"),
        ("text: Good morning BERT!", r"In a file it is input.text"),
    ],
)
def test_an_experiments_unknown_key_is_refused(tmp_path, line, says):
    """Seen to fail: it was passed over, and another run was made than was asked for."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text(f"# @package _global_\n{line}\n")
    with pytest.raises(RefusedError, match=f"(?s){says}"):
        compose(["experiment=typo"], config_dir=tmp_path)


def test_from_python_the_later_of_two_values_counts():
    usual = ["model=tiny", "dtype=bf16", "batch=3"]
    assert compose([*usual, "dtype=fp32", "batch=4"]).settings.batch == 4
    assert compose([*usual, "dtype=fp32"]).dtype.name == "fp32"


def test_null_is_the_experiment_that_is_none():
    chosen = ["model=tiny", "experiment=null"]
    assert compose(chosen).settings == compose(["model=tiny"]).settings
    runs = sweep(expand_short_forms(["experiment=ragged,null"]))
    assert [compose(run).settings.iterations for run in runs] == [5, 1]
    assert [asked(run)["experiment"] for run in runs] == ["ragged", "null"]
    with pytest.raises(RefusedError, match="given twice"):
        check_agreement(expand_short_forms(["experiment=null", "experiment=ragged"]))


def test_an_option_in_quotes_is_the_option():
    for written in ('dtype="bf16"', "dtype='bf16'"):
        assert compose([written]).dtype.name == "bf16"
    (first, second) = sweep(["dtype='bf16',\"fp32\""])
    assert (compose(first).dtype.name, compose(second).dtype.name) == ("bf16", "fp32")


def test_texts_that_are_no_unicode_are_refused():
    with pytest.raises(OptionError, match="UTF-8"):
        compose(["text=\udcff"])
