"""``selfdistill export``."""

import argparse

from selfdistill.commands.shared import MODALITY, MODEL, WEIGHTS, Commands, add_command, path


def add(commands: Commands) -> None:
    export = add_command(
        commands,
        "export",
        [
            "export runs/image-sample --out letters",
            "export runs/joint-sample --modality audio --out words --weights teacher",
        ],
        help="write a folder that transformers loads",
        description="Write a folder that transformers loads: weights, config, processor or "
        "tokenizer, and a model card.",
    )
    export.add_argument("model", metavar="MODEL", help=MODEL)
    export.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="must not be there, or be empty"
    )
    export.add_argument(
        "--modality",
        default="",
        metavar="NAME",
        help=f"{MODALITY} (default: of all, in DIR/NAME)",
    )
    export.add_argument(
        "--weights", choices=("student", "teacher"), default="student", help=WEIGHTS
    )
    export.add_argument(
        "--push",
        default="",
        metavar="USER/NAME",
        help="upload the folder to the Hub, with the token of `hf auth login` or HF_TOKEN; a "
        "repository that is made for it is public unless your account says otherwise",
    )
    export.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.export import export

    lines = export(options.model, options.out, options.weights, options.push, options.modality)
    print("\n".join(lines))
