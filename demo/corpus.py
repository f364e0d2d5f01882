"""What the base checkpoint learns from: many more products and pages than the catalogues have, none held out."""

import json
import random
from pathlib import Path

from demo import documents, products
from demo.catalogs import Picture, draw, write_jsonl
from fanoise.storage import staged_directory

SEED = 1000
"""Far from the catalogues' seeds; the held-out combinations are kept out by `held_out=False`, whatever the seed."""


def make_corpus(
    folder: str | Path, *, product_count: int = 7000, page_count: int = 3000, progress: bool = True
) -> Path:
    """Write `products.jsonl` and `documents.jsonl` (text to image pairs, several phrasings each) and their images."""
    folder = Path(folder)
    rng = random.Random(f"base corpus {SEED}")
    with staged_directory(folder) as staging:
        pictures, rows = [], []
        for number, product in enumerate(products.sample_products(product_count, seed=SEED, held_out=False)):
            pictures.append(Picture(f"images/p{number:05d}.jpg", product, view=number))
            texts = [products.describe(product, phrasing=rng.randrange(8)) for _ in range(2)]
            texts.append(products.describe_detail(product, phrasing=rng.randrange(8)))
            rows += [{"query_text": text, "positive_image": pictures[-1].file} for text in texts]
        write_jsonl(staging / "products.jsonl", rows)
        rows = []
        for number, page in enumerate(documents.sample_pages(page_count, seed=SEED, held_out=False)):
            pictures.append(Picture(f"images/d{number:05d}.jpg", page, view=number))
            texts = [documents.describe(page, phrasing=rng.randrange(documents.PHRASINGS)) for _ in range(2)]
            texts.append(documents.describe_detail(page))
            rows += [{"query_text": text, "positive_image": pictures[-1].file} for text in texts]
        write_jsonl(staging / "documents.jsonl", rows)
        draw(pictures, staging, label="base corpus", progress=progress)
    return folder


def corpus_texts(folder: Path) -> list[str]:
    """Every query text of the corpus, for the tokenizer."""
    lines = [line for name in ("products", "documents") for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [json.loads(line)["query_text"] for line in lines]
