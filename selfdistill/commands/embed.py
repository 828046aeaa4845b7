"""``selfdistill embed``."""

import argparse

from selfdistill.commands.shared import MODALITY, MODEL, WEIGHTS, Commands, add_command, path


def add(commands: Commands) -> None:
    embed = add_command(
        commands,
        "embed",
        ["embed runs/image-sample pictures/ --layers all --out pictures.safetensors"],
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
    embed.add_argument(
        "--out", type=path, required=True, metavar="FILE.safetensors", help="a new file"
    )
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
    embed.add_argument("--weights", choices=("student", "teacher"), default="student", help=WEIGHTS)
    embed.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    embed.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
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
