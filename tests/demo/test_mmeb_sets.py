import re
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from demo import documents, products
from demo.mmeb_rows import Album, Side, crop_files
from demo.mmeb_sets import COMMON, RARE, TaskSet, plan_sets
from demo.products import Product


@pytest.fixture(scope="module")
def planned() -> tuple[list[TaskSet], Album]:
    return plan_sets(train=40, evaluation=20, candidates=16, seed=0)


def subjects_shown(album: Album, sides: list[Side]) -> list:
    """Every product and page in the images of these sides."""
    scenes = dict(album.collages)
    for collage in album.collages.values():
        scenes.update(dict.fromkeys(crop_files(collage), collage))
    shown: list = []
    for side in sides:
        if side.image in scenes:
            shown += scenes[side.image].products
        elif side.image:
            shown.append(album.pictures[side.image].subject)
    return shown


def train_sides(sets: list[TaskSet]) -> list[Side]:
    return [side for each in sets for row in each.train for side in (row.query, row.positive, row.negative)]


def eval_sides(sets: list[TaskSet]) -> list[Side]:
    queries = [row.query for each in sets for row in each.eval]
    return queries + [side for each in sets for targets in each.candidates for side in targets]


def is_held_out(subject) -> bool:
    return products.is_held_out(subject) if isinstance(subject, Product) else documents.is_held_out(subject)


def test_four_meta_tasks_have_sets_in_and_out_of_distribution(planned):
    found = Counter((each.meta_task, each.train_name is not None) for each in planned[0])
    assert set(found) == {(meta, known) for meta in ("CLS", "VQA", "RET", "VG") for known in (True, False)}
    names = [each.name for each in planned[0]]
    assert len(set(names)) == len(names)


def test_only_sets_in_distribution_have_training_rows_and_all_are_full(planned):
    for each in planned[0]:
        assert len(each.train) == (0 if each.train_name is None else 40)
        assert len(each.eval) == len(each.candidates) == 20


def test_one_training_name_differs_from_its_evaluation_name(planned):
    differing = [(each.train_name, each.name) for each in planned[0] if each.train_name not in (None, each.name)]
    assert differing == [("Shop_13", f"Shop-{len(COMMON)}")]


def test_no_held_out_combination_is_shown_in_training_and_evaluation_shows_nothing_else(planned):
    sets, album = planned
    trained, tested = subjects_shown(album, train_sides(sets)), subjects_shown(album, eval_sides(sets))
    assert len(trained) > 300 and len(tested) > 300
    assert not any(is_held_out(subject) for subject in trained)
    assert all(is_held_out(subject) for subject in tested)


def test_training_neither_shows_nor_names_what_is_out_of_distribution(planned):
    sets, album = planned
    assert not {subject.kind for subject in subjects_shown(album, train_sides(sets))} & {*RARE, "report"}
    words = set(re.findall(r"\w+", " ".join(side.text for side in train_sides(sets))))
    assert "mug" in words
    assert not words & {*RARE, "report", "chart"}


def test_rare_sets_ask_about_rare_kinds_only(planned):
    sets, album = planned
    for each in sets:
        if "Rare" in each.name:
            shown = subjects_shown(album, [row.query for row in each.eval])
            assert shown and {subject.kind for subject in shown} <= set(RARE)


def test_questions_out_of_distribution_are_worded_otherwise(planned):
    sets = {each.name: each for each in planned[0]}

    def wording(rows):
        return {re.sub(r"\b(" + "|".join(products.KINDS) + r")\b", "KIND", row.query.text) for row in rows}

    for known, unknown in (("ShopVQA", "RareVQA"), ("PageVQA", "ChartVQA"), ("Shop-13", "Shop-Rare")):
        assert not wording(sets[known].train) & wording(sets[unknown].eval)
    assert wording(sets["ShopVQA"].train) == wording(sets["ShopVQA"].eval)


def test_the_positive_is_first_and_candidates_are_distinct(planned):
    for each in planned[0]:
        for row, targets in zip(each.eval, each.candidates, strict=True):
            assert targets[0] == row.positive
            assert len(set(targets)) == len(targets)
            assert 3 <= len(targets) <= 16
            assert Side() not in targets
            assert row.negative == Side() or targets[1] == row.negative


def test_answers_about_a_picture_are_true_and_the_tempting_one_is_false(planned):
    sets, album = planned
    vqa = next(each for each in sets if each.name == "ShopVQA")
    tempting = 0
    for row in vqa.train + vqa.eval:
        product = album.pictures[row.query.image].subject
        if "second colour" in row.query.text:
            field = "second_colour"
        else:
            field = "colour" if "colour" in row.query.text else "pattern"
        assert product.kind in row.query.text
        assert row.positive == Side(getattr(product, field))
        if row.negative.text:
            tempting += 1
            assert row.negative.text in {product.colour, product.second_colour} - {row.positive.text}
    assert tempting > 20


def test_a_change_keeps_all_but_the_colour_it_names(planned):
    sets, album = planned
    for each in sets:
        if not each.name.endswith("Change"):
            continue
        for row in each.train + each.eval:
            source, target = (album.pictures[side.image].subject for side in (row.query, row.positive))
            assert products.recolour(source, target.colour) == target != source
            assert re.search(rf"\b{target.colour}\b", row.query.text)
            assert album.pictures[row.negative.image].subject == source


def test_a_label_of_a_scene_means_the_product_of_its_crop(planned):
    sets, album = planned
    scenes = next(each for each in sets if each.name == "Scenes")
    for row in scenes.train + scenes.eval:
        collage = album.collages[row.query.image]
        shown = collage.products[crop_files(collage).index(row.positive.image)]
        assert row.query.text.endswith(f'isolates the object labeled as "{shown.kind}"\n')
        assert [product.kind for product in collage.products].count(shown.kind) == 1


def test_asking_for_more_rows_than_there_are_products_says_so():
    with pytest.raises(ValueError, match=r"30000 products are needed, but there are only \d+"):
        plan_sets(train=10_000, evaluation=5, candidates=5, seed=0)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_plan_is_the_same_in_another_process(planned, hash_seed):
    program = (
        "from hashlib import sha256\n"
        "from demo.mmeb_sets import plan_sets\n"
        "sets, album = plan_sets(train=40, evaluation=20, candidates=16, seed=0)\n"
        "print(sha256(repr((sets, album.pictures, album.collages)).encode()).hexdigest())\n"
    )
    root = Path(__file__).parents[2]
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    sets, album = planned
    here = sha256(repr((sets, album.pictures, album.collages)).encode()).hexdigest()
    assert done.stdout.strip() == here
