"""The config: strict keys and types, ranges, nothing but plain values, and the way back."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from modality_cases import MODALITIES

from selfdistill.cli import main
from selfdistill.config import RunConfig
from selfdistill.config_files.load import build_config, dump_config, load_config
from selfdistill.errors import UserError
from selfdistill.modalities.base import load_modality

Make = Callable[..., RunConfig]


TEXT = "modality: text\nrun_dir: somewhere\n"


def refused(load: Callable[..., RunConfig], text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_then_file_then_overrides(load: Make) -> None:
    text = TEXT + "model: {width: 64, heads: 8, depth: 8}\noptim: {lr: 1e-4, betas: [0.9, 0.95]}\n"
    config = load(text, "model.depth=10", "optim.lr=2e-3", "train.precision=bf16", "seed=7")
    assert (config.model.width, config.model.depth, config.model.mlp_ratio) == (64, 10, 4.0)
    assert config.optim.lr == 2e-3
    assert config.optim.betas == (0.9, 0.95)
    assert config.train.precision == "bf16"
    assert (config.seed, config.modality, config.run_dir) == (7, "text", "somewhere")
    assert config.encoder == load_modality("text").encoder_config()


def test_a_home_may_be_named_in_a_file(load: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load("modality: text\nrun_dir: ~/runs/mine\n", "resume=~/runs/other")
    assert (config.run_dir, config.resume) == ("/home/me/runs/mine", "/home/me/runs/other")


def test_overrides_reach_lists_and_the_modality_s_sections(load: Make) -> None:
    config = load(
        TEXT,
        "data.train=[a.tar,b.tar]",
        "input.max_tokens=32",
        "objective.layer_norms=[instance,layer]",
        "eval.tasks.topic.train=[t.tar]",
    )
    assert config.data.train == ["a.tar", "b.tar"]
    assert config.input.max_tokens == 32
    assert config.objective.layer_norms == ["instance", "layer"]
    assert config.eval.tasks["topic"].train == ["t.tar"]


@pytest.mark.parametrize("override", ["optim.lr", "--optim.lr=3", "-s=3", "=3", "model..width=3"])
def test_what_is_no_override_is_refused(override: str, load: Make) -> None:
    assert "is no override; write key=value" in refused(load, TEXT, override)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_dumped_config_reads_back_equal(modality: str, load: Make, tiny_config: Make) -> None:
    for config in (
        tiny_config(modality),
        tiny_config(
            modality,
            seed=3,
            run_dir="a folder/\u00fc: #1",
            optim={"betas": [0.5, 0.75], "lr": 1e-7},
            objective={"loss_scale": 2, "target_layers": [0, 2]},
            eval={"tasks": {"one": {"train": ["a"], "test": ["b"]}}},
        ),
    ):
        again = load(dump_config(config))
        assert again == config
        assert asdict(again) == asdict(config)
        assert dump_config(again) == dump_config(config)


@pytest.mark.parametrize(
    ("given", "key", "nearest"),
    [
        ("optimiser: {lr: 1.0}", "optimiser", "optim"),
        ("optim: {learning_rat: 1.0}", "optim.learning_rat", ""),
        ("optim: {warmup_step: 1}", "optim.warmup_step", "optim.warmup_steps"),
        ("model: {dept: 1}", "model.dept", "model.depth"),
        ("input: {max_token: 9}", "input.max_token", "input.max_tokens"),
        ("mask: {mask_probability: 0.3}", "mask.mask_probability", "mask.mask_prob"),
        ("mask: {num_mask: 3}", "mask.num_mask", "mask.num_masks"),
        ("decoder: {with: 3}", "decoder.with", "decoder.width"),
        ("teacher: {own_local_encoder: true}", "teacher.own_local_encoder", "teacher."),
        ("encoder: {conv_layers: []}", "encoder.conv_layers", "encoder."),
        ("7: 8", "7", ""),
        ("lr: 1.0", "lr", "optim.lr"),  # the same name in another section
        ("optim: {batch_size: 4}", "optim.batch_size", "train.batch_size or eval.batch_size"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(
    given: str, key: str, nearest: str, load: Make
) -> None:
    whose = " of text" if key.startswith(("encoder.", "mask.", "input.")) else ""
    start = f"{key}: no such key{whose}; the nearest valid one is {nearest}"
    assert refused(load, TEXT + given).startswith(start)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("model: {width: wide}", "model.width"),
        ("model: {width: 64.5}", "model.width"),
        ("model: {norm_order: middle}", "model.norm_order"),
        ("model: {key_bias: perhaps}", "model.key_bias"),
        ("optim: {lr: fast}", "optim.lr"),
        ("optim: {betas: [0.9, high]}", "optim.betas"),
        ("optim: {betas: [0.9]}", "optim.betas"),
        ("optim: {betas: [0.9, 0.99, 0.999]}", "optim.betas"),
        ("objective: {layer_norms: [instance, group]}", "objective.layer_norms"),
        ("objective: {layer_norms: layer}", "objective.layer_norms"),
        ("objective: {target_layers: [one]}", "objective.target_layers"),
        ("train: {precision: fp8}", "train.precision"),
        ("strategy: sparse", "strategy"),
        ("teacher: {scope: everything}", "teacher.scope"),
        ("mask: {kind: squares}", "mask.kind"),
        ("decoder: {residual: 3.5}", "decoder.residual"),
        ("data: {train: 3}", "data.train"),
        ("model: 3", "model"),
        ("model: [1]", "model"),
        ("model: null", "model"),
        ("model: {depth: null}", "model.depth"),
        ("seed: [1]", "seed"),
        ("eval: {tasks: {one: {trian: [a]}}}", "eval.tasks.one"),
        ("eval: {tasks: {one: 3}}", "eval.tasks"),
    ],
)
def test_wrong_types_are_named(given: str, key: str, load: Make) -> None:
    assert refused(load, TEXT + given).startswith(key)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train=a.tar", "data.train: 'a.tar' does not fit: it must be a list; put it in [ ]"),
        ("optim.betas=0.9", "optim.betas: 0.9 does not fit: it must be a list; put it in [ ]"),
        ("optim=0.1", "optim: 0.1 does not fit: it is a section; set the keys in it"),
        ("optim.betas=[0.9]", "optim.betas: [0.9] does not fit: it must have 2 values"),
        ("eval.tasks.a=b", "eval.tasks.a: 'b' does not fit: it is a section; set the keys"),
        ("eval.tasks.a.train=b", "eval.tasks.a.train: 'b' does not fit: it must be a list"),
        ("eval.tasks.a=[b]", "eval.tasks.a: ['b'] does not fit: it is a section; set the keys"),
        ("data.train.a=b", "data.train: {'a': 'b'} does not fit: it is no section"),
        ("eval.tasks=[b]", "eval.tasks: ['b'] does not fit: it is a section; set the keys"),
        ("data.train=[null]", "data.train[0]: has no value; give it one"),
        ("data.train=[a,[b]]", "data.train[1]: ['b'] does not fit: it must be one value"),
        ("data.train=[s3: //b]", "data.train[0]: {'s3': '//b'} does not fit: it must be one value"),
        ("eval.tasks.a.test=[[b]]", "eval.tasks.a.test[0]: ['b'] does not fit: it must be one"),
        ("objective.target_layers=[[1]]", "objective.target_layers[0]: [1] does not fit"),
        ("eval={tasks:{a:{}}}", "eval: '{tasks:{a:{}}}' is no YAML (found unexpected ':')"),
        ("guard.patience=0", "guard.patience: 0 must be 1 or more"),
        ("optim.eps=inf", "optim.eps: inf must be finite and not negative"),
        ("run_dir=l\udce4uf", r"run_dir: 'l\udce4uf' is no UTF-8"),
        ("train.steps=", "train.steps: has no value; give it one"),
        ("data.train=", "data.train: has no value; give it one"),
    ],
)
def test_lists_and_sections_are_asked_for_in_words(override: str, words: str, load: Make) -> None:
    assert refused(load, TEXT, override).startswith(words)


@pytest.mark.parametrize("override", ["data.train.0=b", "data.train[0]=b", "data.train={}"])
def test_a_section_is_refused_where_a_file_has_a_list(override: str, load: Make) -> None:
    message = refused(load, TEXT + "data: {train: [a]}\n", override)
    assert message.startswith("data.train: {")
    assert message.endswith("it is no section")


def test_a_date_is_text(load: Make) -> None:
    config = load(
        "modality: text\nrun_dir: 2026-01-31\ndata: {train: [2026-01-31]}\n", "resume=2026-01-30"
    )
    assert (config.run_dir, config.data.train) == ("2026-01-31", ["2026-01-31"])
    assert config.resume == "2026-01-30"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "modality: [text",
        "modality: text\nrun_dir: !!python/object/apply:os.system ['true']",
        "modality: text\nrun_dir: !!python/name:os.system",
        "run_dir: somewhere",
        "modality: 3\nrun_dir: somewhere",
        "modality: smell\nrun_dir: somewhere",
        "modality: text",
        "modality: text\nrun_dir: ''",
    ],
    ids=range(10),
)
def test_files_that_are_no_config_are_refused(text: str, load: Make) -> None:
    refused(load, text)


def test_a_key_that_is_there_twice_is_refused(load: Make) -> None:
    """A section that somebody appends would else take the place of the recipe's, all of it."""
    text = TEXT + "train: {batch_size: 4}\nmodel: {width: 16}\ntrain: {steps: 9}\n"
    assert "it has 'train' twice, the second time in" in refused(load, text)
    assert "line 3" in refused(load, TEXT + "train: {steps: 9, steps: 9}\n")
    assert load(TEXT + "model: {<<: {width: 8, heads: 4}, width: 16}").model.width == 16


def test_a_mistake_in_the_yaml_is_told_with_its_line(load: Make) -> None:
    words = "is not plain YAML: mapping values are not allowed here in line 3, column 8"
    assert refused(load, TEXT + "  train: {}\n").endswith(words)
    words = "train.steps: in a file a key stands below its section, here train:"
    assert refused(load, TEXT + "train.steps: 9\n") == words


def test_tags_are_not_executed(load: Make, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = TEXT + f"seed: !!python/object/apply:pathlib.Path.touch ['{canary}']"
    assert "is not plain YAML" in refused(load, text)
    assert not canary.exists()


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "${run_dir}", "runs/${seed}", "${", "${x:${y}}"]
)
def test_interpolation_is_refused(value: str, load: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "a-secret")
    for message in (
        refused(load, f"modality: text\nrun_dir: '{value}'"),
        refused(load, TEXT, f"run_dir={value}"),
        refused(load, TEXT + f"data: {{train: ['{value}']}}"),
    ):
        assert "a-secret" not in message


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UserError, match="config: cannot read"):
            load_config(path, [], load_modality)
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: gr\xfc\xdfe")
    with pytest.raises(UserError, match="is not plain YAML"):
        load_config(tmp_path / "latin.yaml", [], load_modality)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "width", 0),
        ("model", "depth", -1),
        ("model", "heads", 0),
        ("model", "heads", 3),  # does not divide 16
        ("model", "mlp_ratio", 0.0),
        ("model", "mlp_ratio", 0.01),  # of 16 nothing
        ("model", "norm_eps", -1e-5),
        ("model", "dropout", 1.0),
        ("model", "attention_dropout", -0.1),
        ("model", "activation_dropout", 1.5),
        ("model", "drop_path", 1.0),
        ("model", "layer_drop", float("nan")),
        ("model", "layer_scale", -1.0),
        ("objective", "average_top_k_layers", 0),
        ("objective", "average_top_k_layers", 4),  # of 3
        ("objective", "target_layers", [0, 3]),
        ("objective", "target_layers", [-1]),
        ("objective", "loss_beta", -0.5),
        ("objective", "loss_scale", "sum"),
        ("objective", "loss_scale", 0),
        ("objective", "loss_scale", float("nan")),
        ("compat", "ema_epoch_steps", -1),
        ("objective", "head_layers", 0),
        ("teacher", "ema_decay", 1.01),
        ("teacher", "ema_end_decay", -0.1),
        ("teacher", "ema_anneal_end_step", -1),
        ("optim", "lr", 0.0),
        ("optim", "lr", -1e-3),
        ("optim", "lr", float("nan")),
        ("optim", "lr", float("inf")),
        ("optim", "min_lr", -1.0),
        ("optim", "betas", [0.9, 1.0]),
        ("optim", "eps", -1.0),
        ("optim", "weight_decay", -0.1),
        ("optim", "warmup_steps", -1),
        ("optim", "warmup_steps", 400_000),  # all steps
        ("optim", "min_lr", 1.0),  # more than lr
        ("optim", "clip_norm", -1.0),
        ("train", "steps", 0),
        ("train", "batch_size", 0),
        ("train", "accumulate", 3),  # of 256
        ("data", "workers", -1),
        ("data", "max_bad_share", -0.1),
        ("checkpoint", "every", 0),
        ("checkpoint", "keep", 0),
        ("log", "every", 0),
        ("eval", "every", -1),
        ("eval", "neighbours", 0),
        ("train", "max_left_out", 0),
        ("train", "max_rollbacks", -1),
        ("train", "max_loss_jump", -1.0),
        ("mask", "num_masks", 0),
        ("encoder", "prenet_depth", -1),
        ("objective", "cls_loss", -0.1),
        ("objective", "cls_loss", 0.1),  # there is no class token
        ("objective", "loss_weight", 0.0),
        ("decoder", "width", 0),
        ("decoder", "layers", 0),
        ("decoder", "kernel", 0),
        ("decoder", "groups", 0),
        ("decoder", "projection_layers", 0),
        ("decoder", "projection_ratio", 0.0),
        ("decoder", "input_dropout", 1.0),
        ("decoder", "mask_noise_std", -0.1),
        ("data", "sampling_weight", 0.0),
        ("data", "sampling_weight", float("inf")),
    ],
)
def test_values_out_of_range_are_named(
    section: str, key: str, value: Any, tiny_config: Make
) -> None:
    named = "train.batch_size" if key == "accumulate" else f"{section}.{key}"
    with pytest.raises(UserError) as caught:
        tiny_config("text", **{section: {key: value}})
    assert str(caught.value).startswith(f"{named}: ")


def test_a_number_of_layers_that_nothing_asks_for_may_be_larger(tiny_config: Make) -> None:
    objective = {"average_top_k_layers": 4, "target_layers": [0, 2]}  # of 3
    assert tiny_config("text", objective=objective).objective.target_layers == [0, 2]


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ({"groups": 3}, r"^decoder\.groups: 3 does not divide model\.width 16$"),
        ({"groups": 8, "width": 20}, r"^decoder\.groups: 8 does not divide decoder\.width 20$"),
    ],
)
def test_groups_that_do_not_divide_are_refused_where_there_is_a_decoder(
    decoder: dict[str, int], words: str, tiny_config: Make
) -> None:
    with pytest.raises(UserError, match=words):
        tiny_config("text", strategy="visible", decoder=decoder)
    assert tiny_config("text", decoder=decoder).strategy == "dense"


@pytest.mark.parametrize(
    ("modality", "overrides", "key"),
    [
        ("text", ["mask.num_masks=0"], "mask.num_masks"),
        ("text", ["seed=9223372036854775808"], "seed"),
        (
            "text",
            ["strategy=visible", "decoder.projection_ratio=0.001"],
            "decoder.projection_ratio",
        ),
        ("image", ["input.color_jitter=-1"], "input.color_jitter"),
        ("image", ["input.crop_scale=[0.5,3.0]"], "input.crop_scale"),
        ("image", ["input.max_pixels=0"], "input.max_pixels"),
        ("audio", ["input.min_seconds=.nan"], "input.min_seconds"),
        ("audio", ["input.max_seconds=.inf"], "input.max_seconds"),
        ("image", ["encoder.patch_size=224"], "encoder.patch_size"),
        ("image", ["data.train=[*.tar]"], "data.train"),
        ("image", ["optim.lr=[1"], "optim.lr"),
        ("image", ["checkpoint.best=linear", "eval.every=10000"], "checkpoint.best"),
        ("image", ["checkpoint.best=teacher_norm"], "checkpoint.best"),
        ("text", ["strategy=visible", "decoder.groups=5"], "decoder.groups"),
        ("audio", ["objective.cls_loss=1.0"], "objective.cls_loss"),
        ("image", ["objective.cls_loss=1.0", "encoder.num_extra_tokens=0"], "objective.cls_loss"),
        ("image", ["strategy=visible", "input.size=[448,224]"], "input.size"),
        ("image", ["mask.kind=squares", "mask.mask_length=15"], "mask.mask_length"),
        ("image", ["mask.kind=squares", "mask.mask_prob=0.999"], "mask.mask_prob"),
        ("image", ["mask.num_patches=196"], "mask.num_patches"),
    ],
)
def test_bad_settings_are_refused_before_any_data_is_looked_for(
    modality: str,
    overrides: list[str],
    key: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    train = f"data: {{train: ['{tmp_path}/absent-*.tar']}}"
    path.write_text(f"modality: {modality}\nrun_dir: {run}\n{train}\n", encoding="utf-8")
    assert main(["pretrain", str(path), *overrides]) == 2
    assert capsys.readouterr().err.startswith(f"selfdistill: {key}: ")
    assert not run.exists()


def test_a_mask_of_everything_is_refused_for_each_modality(tiny_config: Make) -> None:
    for modality, mask in (
        ("audio", {"mask_prob": 1.0}),
        ("text", {"mask_prob": 1.0}),
        ("image", {"num_patches": 12}),
    ):
        with pytest.raises(UserError, match=r"^mask\."):
            tiny_config(modality, mask=mask)


def test_configs_cannot_be_changed(tiny_config: Make) -> None:
    config = tiny_config("text")
    with pytest.raises(AttributeError):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.optim.lr = 3.0  # type: ignore[misc]


def test_plain_values_are_enough() -> None:
    config = build_config({"modality": "audio", "run_dir": "x"}, load_modality)
    assert config.model.width == 768
    assert type(config.encoder).__name__ == "AudioEncoderConfig"


def test_an_empty_override_empties(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "modality: image\nrun_dir: r\neval: {every: 7, tasks: {a: {train: [x], test: [y]}}}\n",
        encoding="utf-8",
    )
    assert load_config(path, [], load_modality).eval.tasks
    found = load_config(path, ["eval.tasks={}"], load_modality)
    assert not found.eval.tasks
    assert found.eval.every == 7


def test_overrides_count_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "modality: image\nrun_dir: r\neval: {every: 7, tasks: {a: {train: [x], test: [y]}}}\n",
        encoding="utf-8",
    )
    others = ["eval.tasks={ }", "eval.tasks.b.train=[x]", "eval.tasks.b.test=[y]"]
    assert list(load_config(path, others, load_modality).eval.tasks) == ["b"]
    found = load_config(path, [*others, "eval={}", "eval.every=3"], load_modality).eval
    assert (found.every, found.tasks) == (3, {})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup_steps": 5}, "optim.warmup_steps: 5 has no effect on tri_stage"),
        ({"phase_ratio": [0.1, 0.1, 0.1]}, r"optim.phase_ratio: \(0.1, 0.1, 0.1\) must be three"),
        ({"phase_ratio": [-0.1, 0.6, 0.5]}, r"optim.phase_ratio: \(-0.1, 0.6, 0.5\) must be three"),
    ],
)
def test_three_stages_need_three_shares(
    settings: dict[str, Any], words: str, tiny_config: Make
) -> None:
    with pytest.raises(UserError, match=f"^{words}"):
        tiny_config("text", optim={"schedule": "tri_stage", **settings})
