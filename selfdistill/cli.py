"""The command line: ``selfdistill`` and ``python -m selfdistill``."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from selfdistill.errors import DataBudgetError, SelfdistillError

MODEL = "a run, a checkpoint, a folder of transformers, or USER/NAME on the Hub"
MODALITY = "whose encoder, of a run over several modalities"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (see ``selfdistill.errors``)."""
    options = _parser().parse_args(argv)
    # every process of a run has the same warnings and most errors; one says them
    first = os.environ.get("RANK", "0") == "0"
    level = logging.WARNING if first else logging.CRITICAL
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    try:
        options.run(options)
    except SelfdistillError as error:
        if first or type(error) in (SelfdistillError, DataBudgetError):
            print(f"selfdistill: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"selfdistill: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return SelfdistillError.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="selfdistill", description="Self-supervised pretraining by self-distillation."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pretrain = commands.add_parser(
        "pretrain",
        help="pretrain an encoder from a config",
        description="Pretrain an encoder from a config. Run it again to go on where it stopped.",
    )
    pretrain.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    pretrain.add_argument("overrides", nargs="*", metavar="key=value", help="such as optim.lr=1e-3")
    pretrain.add_argument(
        "--resume", action="store_true", help="refuse to start afresh if there is no checkpoint"
    )
    pretrain.set_defaults(run=_pretrain)
    _add_embed(commands)
    _add_export(commands)
    _add_compare(commands)
    return parser


def _add_embed(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    embed = commands.add_parser(
        "embed",
        help="write the features of a pretrained encoder",
        description="Write the features of a pretrained encoder to a safetensors file. Inputs "
        "longer than the model's (input.max_seconds, input.max_tokens) are cropped to their "
        "beginning; what cannot be used is skipped. Both are counted.",
    )
    embed.add_argument("model", metavar="MODEL", help=MODEL)
    embed.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="audio or image files, text files (every line is an input; - for the standard "
        "input), folders of files, WebDataset shards",
    )
    embed.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    embed.add_argument(
        "--layers",
        default="last",
        help="last (default), all, or numbers such as 0,6,12; 0 is the input of the blocks, "
        "i the output of block i",
    )
    embed.add_argument(
        "--pool",
        choices=("mean", "none"),
        default="mean",
        help="mean over the positions of an input (default), or all of them, one input after "
        "the other",
    )
    embed.add_argument("--batch-size", type=int, default=16, help="inputs at a time (default 16)")
    embed.add_argument("--modality", default="", metavar="NAME", help=MODALITY)
    embed.add_argument("--weights", choices=("student", "teacher"), default="student")
    embed.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    embed.set_defaults(run=_embed)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = commands.add_parser(
        "export",
        help="write a folder that transformers loads",
        description="Write a folder that transformers loads: weights, config, processor or "
        "tokenizer, and a model card.",
    )
    export.add_argument("model", metavar="MODEL", help=MODEL)
    export.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="must not be there, or be empty"
    )
    export.add_argument(
        "--modality",
        default="",
        metavar="NAME",
        help=f"{MODALITY} (default: of all, in DIR/NAME)",
    )
    export.add_argument("--weights", choices=("student", "teacher"), default="student")
    export.add_argument(
        "--push",
        default="",
        metavar="USER/NAME",
        help="upload the folder to the Hub, with the token of `hf auth login` or HF_TOKEN; a "
        "repository that is made for it is public unless your account says otherwise",
    )
    export.set_defaults(run=_export)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = commands.add_parser(
        "compare",
        help="draw the accuracy of runs over their training time",
        description="Draw the accuracy of runs over their training time, evaluations left out, and "
        "print when each had the final accuracy of the first one. Runs that differ in their seed "
        "only are drawn as one: their mean, and a band from the worst to the best.",
    )
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    compare.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help="or .png")
    compare.add_argument("--task", help="of eval.tasks (default: each modality's first)")
    compare.add_argument("--probe", choices=("linear", "few_shot", "knn"), default="linear")
    compare.set_defaults(run=_compare)


def _pretrain(options: argparse.Namespace) -> None:
    # torch takes seconds to import; a typing error should not
    from selfdistill.config_file import load_config
    from selfdistill.modalities.base import load_modality
    from selfdistill.pretrain import pretrain

    config = load_config(options.config, options.overrides, load_modality)
    pretrain(config, must_resume=options.resume)


def _embed(options: argparse.Namespace) -> None:
    from selfdistill.embed import embed

    embed(
        options.model,
        options.inputs,
        options.out,
        layers=options.layers,
        pool=options.pool,
        batch_size=options.batch_size,
        weights=options.weights,
        device=options.device,
        modality=options.modality,
    )


def _export(options: argparse.Namespace) -> None:
    from selfdistill.export import export

    lines = export(options.model, options.out, options.weights, options.push, options.modality)
    print("\n".join(lines))


def _compare(options: argparse.Namespace) -> None:
    from selfdistill.compare import compare

    table = compare(options.runs, options.out, options.task, options.probe)
    print(f"{table}\n\nwritten to {options.out}")
