"""``selfdistill pack``."""

import argparse
import re
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from selfdistill.commands.shared import Commands, HelpFormatter, add_command, examples, path, seed
from selfdistill.cores import cores


def add(commands: Commands) -> None:
    pack = add_command(
        commands,
        "pack",
        [
            "pack image raw/pictures --out data/pictures --labels folder",
            "pack audio recordings/ --out data/clips --max-seconds 20",
            "pack text books.jsonl --out data/books --max-tokens 256",
        ],
        help="write folders of files as shards for training",
        description="Write folders of files as WebDataset shards for training. Each modality has "
        "options of its own: selfdistill pack MODALITY --help.",
        usage="%(prog)s MODALITY SOURCE... --out DIR [option ...]",
    )
    pack.add_argument("modality", metavar="MODALITY", help="such as image")
    pack.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="SOURCE... --out DIR",
        help="folders, files or manifests, and options",
    )
    pack.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.pack import pack, packing_of
    from selfdistill.packing.declaration import Job
    from selfdistill.packing.plan import Shape

    packing = packing_of(options.modality)
    own = packing.options
    parser = _parser(options.modality, own, has_manifests=bool(packing.manifests))
    given = parser.parse_args(options.words)
    chosen = own(**{field.name: getattr(given, field.name) for field in fields(own)})
    job = Job(given.out, chosen, given.seed)
    shape = Shape(given.name, int(given.shard_size * 1e6), given.min_shards)
    print("\n".join(pack(options.modality, given.sources, job, shape, given.workers)))


def _parser(modality: str, own: type, has_manifests: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"selfdistill pack {modality}",
        description="Write WebDataset shards for training, with an index and a summary. The same "
        "command goes on where it was interrupted; the same inputs, options and seed give the same "
        "bytes.",
        epilog=examples(f"pack {modality} raw/ --out data/mine"),
        formatter_class=HelpFormatter,
    )
    source = "a folder, file or manifest" if has_manifests else "a folder or file"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=source)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="a new folder")
    kinds = get_type_hints(own)
    for field in fields(own):
        _add_option(parser, field, kinds[field.name])
    parser.add_argument(
        "--name",
        type=_name,
        default="train",
        help="what the shards' names begin with (default train)",
    )
    parser.add_argument(
        "--shard-size", type=megabytes, default=500.0, metavar="MB", help="about (default 500)"
    )
    parser.add_argument(
        "--min-shards", type=count, default=1, metavar="N", help="so many at least (default 1)"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the order of the samples (default 0)"
    )
    parser.add_argument(
        "--workers",
        type=count,
        default=cores(),
        metavar="N",
        help="processes (default: all cores)",
    )
    return parser


def _add_option(parser: argparse.ArgumentParser, field: "Field[Any]", kind: Any) -> None:
    name = "--" + field.name.replace("_", "-")
    words = field.metadata["help"]
    assert field.default is not MISSING
    if kind is bool:
        parser.add_argument(name, action="store_true", help=words)
    elif get_origin(kind) is Literal:
        parser.add_argument(name, choices=get_args(kind), default=field.default, help=words)
    else:
        parser.add_argument(name, type=kind, default=field.default, help=words)


def _name(text: str) -> str:
    # no folder takes files whose names begin with a dot for its shards
    if not re.fullmatch(r"[^./\n][^/\n]{0,49}", text):
        raise argparse.ArgumentTypeError(
            f"'{text}' must have 1 to 50 characters, no / and no dot in front"
        )
    return text


def megabytes(text: str) -> float:
    if not 0.001 <= (value := float(text)) <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} must be between 0.001 and 1000000")
    return value


def count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value
