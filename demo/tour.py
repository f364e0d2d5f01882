"""The one-command tour: catalogues, two fine-tuned embedders, four indices, the A/B table.

Both arms share base, seed, data order and every setting but the noise.
"""

import ctypes
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from demo import catalogs
from demo.steps import Steps, digest_of
from fanoise.embedder import SPEC_VERSION
from fanoise.errors import FANoiseError
from fanoise.storage import write_atomic

RECIPE = Path("trainer/recipes/demo.yaml")
DATA = Path("runs/demo/data")
RESULTS = Path("demo/results.json")
ARMS = ("baseline", "fanoise")
METRIC = "R@1"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class QuerySet:
    """Queries of one kind over one split of one catalogue."""

    catalog: str
    name: str
    split: str
    label: str


QUERY_SETS = (
    QuerySet("products", "text", "test", "text to product"),
    QuerySet("products", "photo", "test", "photo to same product"),
    QuerySet("products", "photo_text", "test", "photo + “in green”"),
    QuerySet("products", "near_miss", "near_miss", "near-miss products"),
    QuerySet("documents", "text", "test", "text to page"),
    QuerySet("documents", "near_miss", "near_miss", "near-miss pages"),
)


@dataclass(frozen=True)
class Tour:
    """One pass over the demo: `root` holds its runs, indices and results; `base` another checkpoint than the demo's."""

    root: Path
    base: str | None = None
    seed: int | None = None
    recipe: Path = RECIPE
    data: Path = DATA
    products: catalogs.CatalogSize = catalogs.PRODUCTS
    documents: catalogs.CatalogSize = catalogs.DOCUMENTS
    progress: bool = True

    def run(self) -> dict[str, Any]:
        """Do what is not done yet and return the report, also written to `report.json`."""
        self.root.mkdir(parents=True, exist_ok=True)
        steps = Steps(self.root / "steps.json")
        self._draw()
        self._train(steps)
        for arm in ARMS:
            self._index_and_evaluate(steps, arm)
        steps.run("report", self._result_files(), [self.root / "report.json"], self._write_report)
        return json.loads((self.root / "report.json").read_text())

    def write_examples(self, file: Path) -> None:
        """Queries to click on the page: up to two of each set, photos included."""
        examples: dict[str, list[dict[str, str]]] = {"products": [], "documents": []}
        for query_set in QUERY_SETS:
            rows = [json.loads(line) for line in self.queries(query_set).read_text().splitlines()]
            for row in rows[3:60:30]:
                entry = {"label": row.get("text") or "a photo of a product"}
                if "text" in row:
                    entry["text"] = row["text"]
                if "image" in row:
                    entry["image"] = Path(
                        os.path.relpath(self.queries(query_set).parent / row["image"], file.parent)
                    ).as_posix()
                    if "text" in row:
                        entry["label"] = f"photo: {row['text']}"
                examples[query_set.catalog].append(entry)
        write_atomic(file, json.dumps(examples, indent=2, ensure_ascii=False) + "\n")

    def index(self, catalog: str, arm: str) -> Path:
        return self.root / "index" / f"{catalog}-{arm}"

    def _result(self, query_set: QuerySet, arm: str) -> Path:
        return self.root / "results" / f"{query_set.catalog}-{query_set.name}-{arm}.json"

    def queries(self, query_set: QuerySet) -> Path:
        return self.data / query_set.catalog / "queries" / f"{query_set.name}.jsonl"

    def _draw(self) -> None:
        """The catalogues, which tours of several bases and seeds share: their ledger lies beside them."""
        steps = Steps(self.data / "steps.json")
        for name, make, size in (
            ("products", catalogs.make_products, self.products),
            ("documents", catalogs.make_documents, self.documents),
        ):
            folder = self.data / name
            action = partial(make, folder, size=size, progress=self.progress)
            steps.run(f"draw {name}", [str(catalogs.VERSION), str(size)], [folder / "catalog.csv"], action)

    def _drawn(self) -> list[str]:
        """What decides the pictures, which the tables only name."""
        return [str(catalogs.VERSION), str(self.products), str(self.documents)]

    def _train(self, steps: Steps) -> None:
        inputs: list[Path | str] = [self.recipe, *self._pair_files(), *_weight_files(self._base())]
        inputs += [str(self.base), str(self.seed), str(SPEC_VERSION), *self._drawn()]
        started = self.root / "training.started"
        digest = digest_of(inputs)

        def train() -> None:
            # killed runs go on only from the same inputs; what else lies in their folders is of an older recipe
            if not started.exists() or started.read_text() != digest:
                for arm in ARMS:
                    shutil.rmtree(self.root / arm, ignore_errors=True)
                write_atomic(started, digest)
            _run_all([self._training_command(arm) for arm in ARMS])

        steps.run("train", inputs, [self.root / arm / "embedder.json" for arm in ARMS], train)

    def _training_command(self, arm: str) -> list[str]:
        options: dict[str, Any] = {"output_dir": self.root / arm, "resume": "auto"}
        if arm == "baseline":
            options["noise.strength"] = 0
        if self.seed is not None:
            options["seed"] = self.seed
        if self.base is not None:  # a real VLM wants a gentler rate, and does not fit a whole batch at once
            options |= {"model.base": self.base, "optimizer.lr": 1e-4, "chunk_size": 8}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "trainer", "--config", str(self.recipe), *arguments]

    def _base(self) -> str:
        return self.base or self._settings()["model"]["base"]

    def _settings(self) -> dict[str, Any]:
        return yaml.safe_load(self.recipe.read_text())

    def _pair_files(self) -> list[Path]:
        return [Path(path) for path in self._settings()["data"]["pairs"]]

    def _index_and_evaluate(self, steps: Steps, arm: str) -> None:
        """Both in this process, and with the embedder loaded once: imports and loading cost more than the work."""
        run = self.root / arm
        weights = [*_weight_files(run), run / "embedder.json"]
        loaded: dict[str, Any] = {}

        def embedder() -> Any:
            if not loaded:
                from fanoise.embedder import Embedder

                loaded["embedder"] = Embedder.from_pretrained(run)
            return loaded["embedder"]

        def build(catalog: str) -> None:
            from index.build import build_index

            print(f"index {catalog} with {arm}", flush=True)
            build_index(
                embedder(), self.data / catalog / "catalog.csv", self.index(catalog, arm), progress=self.progress
            )

        def evaluate(query_set: QuerySet) -> None:
            from eval.retrieval import evaluate
            from index.search import Searcher

            searcher = Searcher.open(self.index(query_set.catalog, arm), embedder=embedder())
            result = evaluate(
                searcher,
                self.queries(query_set),
                where={"split": query_set.split},
                seed=self.seed,
                progress=self.progress,
            )
            result.write(self._result(query_set, arm))

        for catalog in ("products", "documents"):
            target = self.index(catalog, arm)
            steps.run(
                f"index {catalog} {arm}",
                [*weights, self.data / catalog / "catalog.csv", *self._drawn()],
                [target / "manifest.json"],
                partial(build, catalog),
            )
        for query_set in QUERY_SETS:
            manifest = self.index(query_set.catalog, arm) / "manifest.json"
            result = self._result(query_set, arm)
            steps.run(
                f"evaluate {query_set.catalog} {query_set.name} {arm}",
                [manifest, self.queries(query_set)],
                [result],
                partial(evaluate, query_set),
            )

    def _result_files(self) -> list[Path]:
        files = [self._result(query_set, arm) for query_set in QUERY_SETS for arm in ARMS]
        return [*files, *([RESULTS] if RESULTS.exists() else [])]

    def _write_report(self) -> None:
        from eval.compare import compare

        rows = []
        for query_set in QUERY_SETS:
            comparison = compare(*(self._result(query_set, arm) for arm in ARMS), metric=METRIC)
            found = comparison.headline
            row = {
                "name": query_set.label,
                "catalog": query_set.catalog,
                "metric": METRIC,
                "queries": comparison.queries,
                "baseline": found.a,
                "fanoise": found.b,
                "difference": found.difference,
                "interval": [found.low, found.high],
                "p": found.p,
                "wins": found.wins,
                "ties": found.ties,
                "losses": found.losses,
            }
            rows.append(row | (_seed_spread(query_set) if self.base is None and self.recipe == RECIPE else {}))
        report = {
            "base": self._base(),
            "noise": self._settings()["noise"],
            "sets": rows,
        }
        write_atomic(self.root / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def table(report: dict[str, Any]) -> str:
    """The report as aligned text, values in points of 100."""
    rows = [("query set", "queries", "baseline", "FANoise", "difference", "95 % interval", "p", "baseline over seeds")]
    for row in report["sets"]:
        low, high = row["interval"]
        spread = f"± {100 * row['spread']:.1f} ({row['seeds']} seeds)" if "spread" in row else "not measured"
        rows.append(
            (
                row["name"],
                str(row["queries"]),
                f"{100 * row['baseline']:.1f}",
                f"{100 * row['fanoise']:.1f}",
                f"{100 * row['difference']:+z.1f}",
                f"{100 * low:+z.1f} to {100 * high:+z.1f}",
                "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}",
                spread,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _seed_spread(query_set: QuerySet) -> dict[str, Any]:
    """The baseline's standard deviation over seeds, from the shipped results."""
    if not RESULTS.exists():
        return {}
    for row in json.loads(RESULTS.read_text())["sets"]:
        if (row["catalog"], row["name"]) == (query_set.catalog, query_set.label) and len(row["baseline"]) > 1:
            return {"spread": statistics.stdev(row["baseline"]), "seeds": len(row["baseline"])}
    return {}


def _weight_files(folder: str | Path) -> Iterable[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


def _run_all(commands: Sequence[list[str]]) -> None:
    """Run the commands: beside each other on a CPU, where small models do not fill the cores, else in turn.

    Raises: FANoiseError if one fails; the others are then stopped.
    """
    import torch

    together = 1 if torch.cuda.is_available() else len(commands)
    threads = max(1, (os.cpu_count() or 1) // together)
    for start in range(0, len(commands), together):
        running = [
            # tqdm takes its line on the terminal from the environment
            subprocess.Popen(
                command,
                env={"OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(position), **os.environ},
                preexec_fn=_die_with_parent,
            )
            for position, command in enumerate(commands[start : start + together])
        ]
        try:
            while any(process.poll() is None for process in running):
                if failed := [process.returncode for process in running if process.returncode]:
                    raise FANoiseError(f"training stopped with status {failed[0]}; see its message above")
                time.sleep(0.1)
        finally:
            for process in running:
                if process.poll() is None:
                    process.terminate()
                process.wait()
        if failed := [process.returncode for process in running if process.returncode]:
            raise FANoiseError(f"training stopped with status {failed[0]}; see its message above")


def _die_with_parent() -> None:
    """On Linux, end the child when this process is killed: two trainers must not meet in one folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
