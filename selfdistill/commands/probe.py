"""``selfdistill probe``."""

import argparse

from selfdistill.commands.shared import MODALITY, MODEL, WEIGHTS, Commands, add_command, path, seed
from selfdistill.probes.request import CACHE_FOLDER, PROBES


def add(commands: Commands) -> None:
    probe = add_command(
        commands,
        "probe",
        [
            "probe runs/image-sample --json found.json",
            "probe letters --train A.tar --test B.tar --probes linear,knn",
        ],
        help="say what frozen features know of labels",
        description="Say what the frozen features of a pretrained encoder know of labels, beside "
        "the raw input and the untrained encoder. Layers and settings are chosen on a fifth of "
        "the training split; the test split is looked at once.",
    )
    probe.add_argument("model", metavar="MODEL", help=MODEL)
    probe.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="labelled shards, of which a fifth of each class is the test split (default: the "
        "labelled sets of the run's config)",
    )
    probe.add_argument("--train", nargs="+", default=[], metavar="SHARDS", help="in place of DATA")
    probe.add_argument("--test", nargs="+", default=[], metavar="SHARDS", help="with --train")
    probe.add_argument(
        "--labels",
        type=path,
        metavar="FILE",
        help=".csv or .tsv with key and class, or a .json object, in place of the .cls members; no "
        "two samples may have one key that it names",
    )
    probe.add_argument(
        "--probes",
        default=",".join(PROBES),
        metavar="NAMES",
        help=f"some of {','.join(PROBES)} (default all; of tokens linear and knn)",
    )
    probe.add_argument(
        "--neighbours", metavar="K", help="such as 1,5,20,100 (default, as far as samples go)"
    )
    probe.add_argument("--few-shot", type=int, default=10, help="labels per class (default 10)")
    probe.add_argument(
        "--per",
        choices=("sample", "token"),
        default="sample",
        help="token: labels are those of frames, patches or tokens of text, <s> and </s> included: "
        ".labels.json members with a list of integers (-1: none), one per token; of inputs with a "
        "length in time any, of equally long pieces",
    )
    probe.add_argument(
        "--ctc",
        action="store_true",
        help="in place of the probes: a linear layer spells the transcripts (.txt members), and "
        "its character error rate is told",
    )
    probe.add_argument(
        "--no-baselines", action="store_true", help="leave out raw input and untrained encoder"
    )
    probe.add_argument("--json", type=path, metavar="FILE", help="write all that is found")
    probe.add_argument("--csv", type=path, metavar="FILE", help="write a row per probe and layer")
    probe.add_argument(
        "--cache",
        type=path,
        default=CACHE_FOLDER,
        metavar="DIR",
        help=f"where features are kept for the next time (default {CACHE_FOLDER})",
    )
    probe.add_argument(
        "--cache-gb", type=float, default=20, help="most that they take (default 20)"
    )
    probe.add_argument("--seed", type=seed, default=0, help="of splits and draws (default 0)")
    probe.add_argument("--batch-size", type=int, default=64, help="samples at a time (default 64)")
    probe.add_argument("--modality", default="", metavar="NAME", help=MODALITY)
    probe.add_argument("--weights", choices=("student", "teacher"), default="student", help=WEIGHTS)
    probe.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    probe.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from selfdistill.durable import write_atomically
    from selfdistill.outputs import check_output
    from selfdistill.probe import probe
    from selfdistill.probes.report import as_csv, as_json, render_probes
    from selfdistill.probes.request import Request, numbers_of, probes_of

    for option, out in (("--json", options.json), ("--csv", options.csv)):
        if out is not None:
            check_output(out, option)
    request = Request(
        options.model,
        options.data,
        options.train,
        options.test,
        labels=options.labels,
        probes=probes_of(options.probes),
        neighbours=None if options.neighbours is None else numbers_of(options.neighbours),
        few_shot_labels=options.few_shot,
        per_token=options.per == "token",
        ctc=options.ctc,
        baselines=not options.no_baselines,
        cache=options.cache,
        cache_gb=options.cache_gb,
        batch_size=options.batch_size,
        weights=options.weights,
        modality=options.modality,
        device=options.device,
        seed=options.seed,
    )
    result = probe(request)
    written = []
    for out, written_as in ((options.json, as_json), (options.csv, as_csv)):
        if out is not None:
            write_atomically(out, written_as(result))
            written.append(f"\nwritten to {out}")
    print("\n".join([render_probes(result), *written]))
