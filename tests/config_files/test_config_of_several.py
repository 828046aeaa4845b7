"""The config of a run over several modalities: what each may say, what all share, the way back."""

from collections.abc import Callable
from dataclasses import asdict

import pytest

from selfdistill.config import DecoderConfig, GuardConfig, ObjectiveConfig, RunConfig, TeacherConfig
from selfdistill.config_files.load import dump_config, plain_config
from selfdistill.errors import UserError
from selfdistill.modalities.base import load_modality

Load = Callable[..., RunConfig]
SHARED = """\
run_dir: somewhere
model: {width: 16, depth: 3, heads: 4}
teacher: {ema_decay: 0.99, scope: all}
objective: {average_top_k_layers: 2, layer_norms: [instance, layer]}
data: {workers: 1, max_bad_share: 0.5}
guard: {min_target_std: 0.2}
"""
BOTH = (
    SHARED
    + """\
modalities:
  audio:
    encoder: {position_groups: 4}
    mask: {num_masks: 3}
    data: {train: [a.tar, b.tar], sampling_weight: 2.0}
    objective: {layer_norms: [instance], loss_weight: 0.5}
    teacher: {scope: all_but_local, copied: [encoder.positions]}
    guard: {min_target_std: 0.0}
    eval: {tasks: {words: {train: [t.tar], test: [u.tar]}}}
  text:
    input: {max_tokens: 24}
    decoder: {width: 32}
    data: {train: [c.tar]}
"""
)


def test_each_modality_has_its_sections_on_top_of_the_shared_ones(load: Load) -> None:
    config = load(BOTH)
    assert config.modality == ""
    assert (config.encoder, config.mask, config.input) == (None, None, None)
    parts = config.parts()
    assert list(parts) == ["audio", "text"]
    audio, text = parts["audio"], parts["text"]
    for name, part in parts.items():
        assert part.modality == name
        assert type(part.encoder) is load_modality(name).encoder_config
        assert part.run_dir == "somewhere"
        assert part.model == config.model
        assert part.teacher.ema_decay == 0.99
        assert (part.data.workers, part.data.max_bad_share) == (1, 0.5)
        assert part.objective.average_top_k_layers == 2
        assert part.parts() == {name: part}
    assert (audio.mask.num_masks, text.mask.num_masks) == (3, 1)
    assert (audio.data.train, text.data.train) == (["a.tar", "b.tar"], ["c.tar"])
    assert (audio.data.sampling_weight, text.data.sampling_weight) == (2.0, 1.0)
    assert (audio.objective.layer_norms, text.objective.layer_norms) == (
        ["instance"],
        ["instance", "layer"],
    )
    assert (audio.objective.loss_weight, text.objective.loss_weight) == (0.5, 1.0)
    assert (audio.teacher.scope, text.teacher.scope) == ("all_but_local", "all")
    assert (audio.teacher.copied, text.teacher.copied) == (["encoder.positions"], [])
    assert (audio.guard.min_target_std, text.guard.min_target_std) == (0.0, 0.2)
    assert (audio.decoder.width, text.decoder.width) == (DecoderConfig.width, 32)
    assert (list(audio.eval.tasks), text.eval.tasks) == (["words"], {})
    assert audio.encoder.position_groups == 4
    assert text.input.max_tokens == 24


def test_what_is_a_modality_s_is_at_its_default_in_the_whole(load: Load) -> None:
    config = load(BOTH)
    assert config.objective == ObjectiveConfig()
    assert config.decoder == DecoderConfig()
    assert (config.teacher.scope, config.teacher.copied) == (TeacherConfig.scope, [])
    assert (config.data.train, config.data.sampling_weight, config.data.workers) == ([], 1.0, 1)
    assert config.guard == GuardConfig()
    assert config.eval.tasks == {}
    assert config.teacher.ema_decay == 0.99


def test_a_run_over_one_is_its_own_part(load: Load) -> None:
    config = load("modality: text\nrun_dir: somewhere\n")
    assert config.parts() == {"text": config}
    assert config.modalities == {}


def test_overrides_reach_each_modality_and_all(load: Load) -> None:
    config = load(
        BOTH,
        "modalities.audio.mask.mask_prob=0.4",
        "modalities.text.data.train=[d.tar]",
        "modalities.audio.eval.tasks={}",
        "model.depth=4",
        "objective.loss_beta=1.0",
    )
    audio, text = config.parts().values()
    assert (audio.mask.mask_prob, audio.mask.num_masks) == (0.4, 3)
    assert text.data.train == ["d.tar"]
    assert audio.eval.tasks == {}
    assert config.model.depth == audio.model.depth == text.model.depth == 4
    assert audio.objective.loss_beta == text.objective.loss_beta == 1.0


@pytest.mark.parametrize("text", [BOTH, SHARED + "modalities: {text: {}, audio: {}}\n"])
def test_a_dumped_config_reads_back_equal(text: str, load: Load) -> None:
    config = load(text)
    again = load(dump_config(config))
    assert again == config
    assert asdict(again) == asdict(config)
    assert dump_config(again) == dump_config(config)
    for name, part in config.parts().items():  # and a part is a config of its own
        assert load(dump_config(part)) == part, name
    plain = plain_config(config)
    assert "modality" not in plain
    assert list(plain["modalities"]) == list(config.modalities)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("modalities: 3", "modalities: must be names with their sections"),
        ("modalities: [audio, text]", "modalities: must be names with their sections"),
        ("modalities: {text: 3}", "modalities.text: must hold the modality's sections"),
        ("modalities: {text: null}", "modalities.text: must hold the modality's sections"),
        ("modalities: {smell: {}}", "modalities.smell: modality: there is no 'smell'; choose one"),
        ("modalities: {7: {}}", "modalities.7: modality: "),
        ("modalities: {}", "modality: missing"),
        (
            "modality: text\nmodalities: {text: {}}",
            "modality: text, but there are modalities, too; remove one of the two",
        ),
        # sections that a modality has not
        (
            "modalities: {text: {optm: {lr: 1.0}}}",
            "modalities.text.optm: a modality has no such key of its own; the nearest valid",
        ),
        ("modalities: {text: {optim: {lr: 1.0}}}", "modalities.text.optim: a modality has no"),
        ("modalities: {text: {model: {depth: 9}}}", "modalities.text.model: a modality has no"),
        ("modalities: {text: {run_dir: x}}", "modalities.text.run_dir: a modality has no such"),
        ("modalities: {text: {modality: audio}}", "modalities.text.modality: a modality has no"),
        ("modalities: {text: {modalities: {}}}", "modalities.text.modalities: a modality has"),
        # keys that all share
        (
            "modalities: {text: {teacher: {ema_decay: 0.5}}}",
            "modalities.text.teacher.ema_decay: is shared by all modalities; set teacher.ema_decay",
        ),
        ("modalities: {text: {teacher: {ema_end_decay: 0.5}}}", "modalities.text.teacher.ema_end"),
        (
            "modalities: {text: {teacher: {ema_anneal_end_step: 1}}}",
            "modalities.text.teacher.ema_anneal_end_step: is shared",
        ),
        ("modalities: {text: {data: {workers: 0}}}", "modalities.text.data.workers: is shared"),
        ("modalities: {text: {data: {max_bad_share: 0.0}}}", "modalities.text.data.max_bad_share:"),
        ("modalities: {text: {eval: {every: 3}}}", "modalities.text.eval.every: is shared by all"),
        # what belongs to one
        ("data: {train: [a]}\nmodalities: {text: {}}", "data.train: belongs below modalities.NAME"),
        ("mask: {num_masks: 2}\nmodalities: {text: {}}", "mask: belongs below modalities.NAME"),
        ("encoder: {vocab_size: 9}\nmodalities: {text: {}}", "encoder: belongs below modalities"),
        ("input: {max_tokens: 9}\nmodalities: {text: {}}", "input: belongs below modalities.NAME"),
        (
            "eval: {tasks: {a: {train: [b]}}}\nmodalities: {text: {}}",
            "eval.tasks: belongs below modalities.NAME",
        ),
        # what a run over one would refuse, too
        (
            "modalities: {text: {mask: {mask_pro: 1}}}",
            "modalities.text: mask.mask_pro: no such key of text; the nearest valid one",
        ),
        ("modalities: {text: {mask: {mask_prob: x}}}", "modalities.text: mask.mask_prob: 'x' does"),
        ("modalities: {text: {mask: 3}}", "modalities.text: mask: 3 does not fit"),
        ("modalities: {text: {data: 3}}", "modalities.text: data: 3 does not fit"),
        ("modalities: {text: {mask: {num_masks: 0}}}", "modalities.text: mask.num_masks: 0 must"),
        ("modalities: {text: {input: {max_tokens: 2}}}", "modalities.text: input.max_tokens: 2"),
        (
            "modalities: {text: {objective: {cls_loss: 1.0}}}",
            "modalities.text: objective.cls_loss: 1.0 needs a class token",
        ),
        (
            "modalities: {text: {data: {sampling_weight: 0.0}}}",
            "modalities.text: data.sampling_weight: 0.0 must be finite and more than 0",
        ),
        (
            "modalities: {text: {objective: {loss_weight: -1.0}}}",
            "modalities.text: objective.loss_weight: -1.0 must be finite and more than 0",
        ),
        ("nonsense: 3\nmodalities: {text: {}}", "modalities.text: nonsense: no such key"),
        (
            "modalities: {text: {input: {tokenizer: '${run_dir}'}}}",
            "modalities.text: input.tokenizer: '${run_dir}' interpolates",
        ),
    ],
)
def test_what_is_refused(given: str, words: str, load: Load) -> None:
    shared = "run_dir: somewhere\nmodel: {width: 16, depth: 8, heads: 4}\n"
    with pytest.raises(UserError) as caught:
        load(shared + given + "\n")
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_contradiction_of_one_modality_alone_is_refused(load: Load) -> None:
    with pytest.raises(UserError, match=r"^modalities\.audio: decoder\.groups: 5 does not divide"):
        load(BOTH, "strategy=visible", "modalities.audio.decoder.groups=5")
    assert load(BOTH, "modalities.audio.decoder.groups=5").strategy == "dense"  # has no decoder


def test_one_modality_is_a_run_over_one(load: Load) -> None:
    config = load(SHARED + "modalities: {text: {data: {train: [c.tar]}}}")
    assert (config.modality, config.modalities) == ("text", {})
    assert config.data.train == ["c.tar"]


def test_each_modality_may_have_its_own_strategy(load: Load) -> None:
    config = load(BOTH, "strategy=visible", "modalities.text.strategy=dense")
    assert {name: part.strategy for name, part in config.parts().items()} == {
        "audio": "visible",
        "text": "dense",
    }
    assert load(dump_config(config)) == config
    with pytest.raises(UserError, match=r"^modalities.text: strategy: 'sparse' does not fit"):
        load(BOTH, "modalities.text.strategy=sparse")
    with pytest.raises(UserError, match=r"^strategy: every modality sets it; write modalities\.N"):
        load(dump_config(config), "strategy=dense")


def test_an_override_that_would_change_nothing_is_refused(load: Load) -> None:
    saved = dump_config(load(BOTH))
    with pytest.raises(UserError, match=r"^objective.loss_beta: .*modalities.NAME.objective"):
        load(saved, "objective.loss_beta=2")
    assert load(saved, "teacher.ema_decay=0.5").parts()["text"].teacher.ema_decay == 0.5
    changed = load(BOTH, "objective.loss_beta=2")
    assert changed.parts()["audio"].objective.loss_beta == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modalities: {text: {}, selfdistill.modalities.text: {}}", "last part of the name"),
        ("data: 3\nmodalities: {text: {}, audio: {}}", "^data: 3 is no section"),
        (
            "data: {workers: 1}\nmodalities: {text: {data: [a]}, audio: {}}",
            r"^modalities\.text: data: \['a'\] does not fit: it is a section",
        ),
    ],
)
def test_names_and_sections_that_cannot_be(load: Load, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load("run_dir: r\n" + text)
