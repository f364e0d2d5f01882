"""`index info`, `verify` and `export`: what is in an index, is it sound, and out with it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from index.commands import Commands, Parser, add_command, add_device_option, add_index_option, add_permission_options


def add_info(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "info",
        "Describe an index: embedder, noise, counts, sizes, recall against latency.",
        "  python -m index info --index DIR\n"
        "  python -m index info --index DIR --json\n"
        "  python -m index info --index DIR --plot curve.png",
    )
    add_index_option(parser)
    parser.add_argument("--json", action="store_true", help="print the manifest and the sizes as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw recall against latency, as a .png")
    parser.set_defaults(run=_run_info)


def add_verify(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "verify",
        "Check every file of an index: checksums, counts, ids, unit vectors, deleted rows, thumbnails.",
        "  python -m index verify --index DIR\n"
        "  python -m index verify --index DIR --reencode 100\n"
        "  python -m index verify --index DIR --embedder runs/demo/fanoise --json",
        more="With --embedder or --reencode, items are drawn, encoded again from their catalogues, and compared.\n"
        "What these catalogues may reach is said again: an index of somebody else may name any path and any URL.",
    )
    add_index_option(parser)
    parser.add_argument("--embedder", metavar="RUN", help="also compare this embedder's fingerprint and vectors")
    parser.add_argument(
        "--reencode",
        type=int,
        metavar="N",
        help="encode N items again; 0 for none (default: 16 with --embedder, else none)",
    )
    add_permission_options(parser, "their catalogue's folder")
    add_device_option(parser)
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="print the faults as JSON")
    parser.set_defaults(run=_run_verify)


def add_export(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "export",
        "Write items and vectors as plain files for other tools: items.parquet, vectors.npy, ids.json.",
        "  python -m index export --index DIR --out exported/",
    )
    add_index_option(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new or empty folder")
    parser.set_defaults(run=_run_export)


def _run_info(args: argparse.Namespace) -> int:
    from index.devices import describe_device
    from index.encoding.plan import unfinished
    from index.manifest import Manifest
    from index.report import describe_index, index_sizes

    manifest = Manifest.read(args.index)
    device = describe_device(manifest.factory, manifest.dim)
    begun = [asdict(one) | {"folder": str(one.folder)} for one in unfinished(args.index)]
    sizes = index_sizes(args.index, manifest)
    found = {"live": manifest.live, "device": device, "sizes": sizes, "unfinished": begun}
    content = manifest.to_dict() | found
    print(json.dumps(content, indent=2) if args.json else describe_index(args.index, manifest, device))
    if args.plot is not None:
        from index.curve_plot import plot_curve

        plot_curve(manifest, args.plot)
    return 0


def _run_verify(args: argparse.Namespace) -> int:
    from fanoise.errors import InputError
    from index.report import describe_faults
    from index.verify import REENCODED, verify_index

    reencode = args.reencode if args.reencode is not None else REENCODED if args.embedder is not None else 0
    if reencode < 0:
        raise InputError(f"--reencode must be at least 0, got {reencode}")
    embedder = None
    if args.embedder is not None:
        from fanoise.embedder import Embedder

        embedder = Embedder.from_pretrained(args.embedder, device=args.device)
    elif reencode:
        from index.encoding.query import load_embedder
        from index.manifest import Manifest

        embedder = load_embedder(Manifest.read(args.index).embedder, args.index, device=args.device)
    faults = verify_index(
        args.index,
        embedder=embedder,
        reencode=reencode,
        allow_outside=args.allow_outside,
        allow_urls=args.allow_urls,
        progress=not args.no_progress,
    )
    if args.json:
        print(json.dumps({"sound": not faults, "faults": faults}, ensure_ascii=False))
    else:
        print(describe_faults(args.index, faults, reencoded=reencode))
    return 1 if faults else 0


def _run_export(args: argparse.Namespace) -> int:
    from index.export import export_index

    count = export_index(args.index, args.out)
    print(f"Exported {count:,} items: {args.out}")
    return 0
