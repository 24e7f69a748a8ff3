"""Les résultats rangés dans minidalle/results que relisent les chapitres : ils sont entiers."""

import csv
import hashlib
import json
from importlib import resources

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from minidalle.evaluation.oracle import read
from minidalle.evaluation.requests import CATEGORIES, SEEN_ONLY, STUDY, judge, requests
from minidalle.evaluation.study import plan, verdicts
from minidalle.evaluation.study_files import RESULTS, read_summary
from minidalle.evaluation.study_summary import counts
from minidalle.generation import TextToImage, to_pixels
from tools.diagnostic import CASES, EVERY, STEPS


def stored(name):
    path = resources.files("minidalle") / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_pair_has_a_grade_from_every_rater():
    """`python -m tools.juges` : douze images, quatre légendes chacune, deux passes."""
    desk = stored("juges")
    pairs = {(s["image"], caption) for s in desk["images"] for caption in s["legendes"].values()}
    assert len(desk["images"]) == 12 and len(pairs) == 48
    rows = list(csv.DictReader(desk["notes"]))
    raters = {row["evaluateur"] for row in rows}
    assert len(raters) == 2 and len(rows) == 96
    assert {(r["image"], r["legende"], r["evaluateur"]) for r in rows} == {
        (*p, r) for p in pairs for r in raters
    }
    assert {row["note"] for row in rows} <= set("01234")


def test_the_judged_drawings_are_tokens_of_the_packaged_dictionary():
    """Ce que les juges ont vu se redessine : un autre dictionnaire n'en ferait que du bruit."""
    desk, painter = stored("juges"), TextToImage.load()
    weights = resources.files("minidalle") / "weights" / "vqvae.safetensors"
    assert desk["oeil"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    rows = [s["jetons"] for s in desk["images"] if "jetons" in s]
    rows += [row for case in desk["classement"] for row in case["jetons"]]
    tokens = torch.tensor([[int(token) for token in row.split()] for row in rows]).view(-1, 8, 8)
    assert len(tokens) == 6 + 16
    assert np.median([reading.left for reading in read(to_pixels(painter.vqvae.decode(tokens)))]) < 0.05


def test_every_remedy_is_followed_on_every_seed():
    """`python -m tools.ordre` : mêmes pas, même départ par graine, comptes possibles."""
    order = stored("ordre")
    steps = [mark["pas"] for mark in order["remedes"]["rien"][0]]
    starts = set()
    for runs in order["remedes"].values():
        assert len(runs) == len(order["graines"])
        for seed, marks in zip(order["graines"], runs, strict=True):
            assert [mark["pas"] for mark in marks] == steps
            assert all(0 <= mark[key] <= order["questions"] for mark in marks for key in ("ordre", "rappel"))
            starts.add((seed, marks[0]["ordre"], marks[0]["rappel"]))
    assert len(starts) == len(order["graines"]), "tous les remèdes partent du même modèle"


def test_every_fault_is_followed_on_every_seed():
    """`python -m tools.diagnostic` : les mêmes cas et les mêmes pas à chaque graine, des comptes possibles."""
    notes = stored("diagnostic")
    assert notes["graines"]
    for cases in notes["graines"].values():
        assert list(cases) == list(CASES)
        for case in cases.values():
            assert [mark["pas"] for mark in case["courbe"]] == list(range(0, STEPS + 1, EVERY))
            assert case["courbe"][-1]["perte"] < case["courbe"][0]["perte"], "une faute fait monter la perte"
            told = case["dessins"]
            assert 0 <= told["justes"] <= min(told["couleur"], told["forme"]) <= notes["dessines"]


@pytest.mark.parametrize("name", ["scenes", "scenes-mini"])
def test_what_the_generators_draw_was_measured_on_the_packaged_weights(name):
    """`python -m tools.dessiner` : les poids livrés, des comptes possibles, une courbe qui apprend."""
    drawn = stored("dessiner")
    weights = resources.files("minidalle") / "weights" / f"{name}.safetensors"
    assert drawn["settings"][name]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    for category in CATEGORIES:
        for told in drawn["models"][name][category].values():
            assert 0 <= told["exact"] <= told["right"] <= told["objects"] <= told["n"] >= 500
        best = drawn["best_of"][name][category]
        assert best["first"] <= best["n"] and best["best"] <= best["n"]
    imitated = drawn["curves"].get(f"{name}-imitation", drawn["curves"][name])
    curve = [row for row in imitated if "delta" in row]
    assert curve[-1]["test_loss"] < curve[0]["test_loss"] and curve[-1]["delta"] > curve[0]["delta"] > 0


def test_rewards_taught_pairs():
    """La récompense : une courbe complète, et des paires mieux dessinées qu'avant elle, réservées comprises."""
    drawn = stored("dessiner")
    path = [row for row in drawn["curves"]["scenes"] if "paire" in row]
    assert [row["step"] for row in path] == sorted({row["step"] for row in path})
    assert all(0 <= row[f"{c}{seen}"] <= 1 for row in path for c in CATEGORIES for seen in ("", "_vu"))
    for group in ("seen", "held_out"):
        before, after = (drawn["models"][name]["paire"][group] for name in ("scenes-imitation", "scenes"))
        assert after["right"] / after["n"] > before["right"] / before["n"]
    for notes in drawn["others"].values():
        assert all(n["clip"] <= n["n"] and 0 <= n["apart"] <= 1 for n in notes.values())


def test_a_slice_of_the_stored_drawings_is_drawn_again():
    """Vingt demandes par catégorie, redessinées : la part juste est celle qui est rangée, au hasard près."""
    drawn = stored("dessiner")
    setting = {k: v for k, v in drawn["settings"]["scenes"].items() if k in ("guidance", "top_p", "top_k")}
    painter = TextToImage.load("scenes")
    for category in ("couleur", "relation"):
        asked = requests(np.random.default_rng(drawn["settings"]["scenes"]["seed"]), category, 20)
        images = [d.images[0] for d in painter.draw_many([r.prompt for r in asked], range(20), **setting)]
        right = sum(judge(*pair).right for pair in zip(read(images), asked, strict=True))
        counts = drawn["models"]["scenes"][category]["held_out"]
        assert binomtest(right, 20, counts["right"] / counts["n"]).pvalue > 1e-3


STUDIES = sorted(path.stem for path in RESULTS.glob("*.csv"))


def test_the_studies_are_small_and_of_the_packaged_weights():
    """`python -m tools.etude` : moins de 5 Mo en tout ; chacune dit sa commande et l'empreinte de ses poids."""
    assert set(STUDIES) == {"scenes", "scenes-aveugle", "scenes-mini"}
    assert sum(path.stat().st_size for path in RESULTS.iterdir()) < 5e6
    for name in STUDIES:
        about, rows = read_summary(name)
        weights = resources.files("minidalle") / "weights" / f"{about['model']}.safetensors"
        assert about["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert about["commande"].startswith("minidalle evaluate study --model")
        groups = {(c, held_out) for c in STUDY for held_out in (True, False)} - {(c, True) for c in SEEN_ONLY}
        assert {(count.category, count.held_out): count.n for count in counts(rows)} == dict.fromkeys(
            groups, about["n"]
        )


@pytest.mark.parametrize("name", STUDIES)
def test_a_slice_of_each_study_is_drawn_and_judged_again(name):
    """Des lignes prises au hasard : redessinées, elles sont les mêmes, à une près si la machine arrondit autrement."""
    about, rows = read_summary(name)
    stored = {(r.category, r.held_out, r.index, r.attempt): r for r in rows}
    items = [item for item in plan(12, about["seed"], tries=about["tries"]) if item.index < 11]
    items = [items[i] for i in np.random.default_rng().choice(len(items), 24, replace=False)]
    painter = TextToImage.load(about["model"])
    drawings = painter.draw_many(
        [item.request.prompt for item in items], [item.seed for item in items], **about["settings"]
    )
    again = verdicts(items, read([d.images[0] for d in drawings]), [""] * len(items))
    same = [
        row._replace(seed=0, prompt="", contrast="")
        == stored[row.category, row.held_out, row.index, row.attempt]
        for row in again
    ]
    assert sum(same) >= len(same) - 1


def test_the_drawings_seen_by_eye_are_those_of_the_study():
    """Deux cents dessins relus : l'avis de l'oracle y est celui que range l'étude."""
    hands = stored("mains")
    assert len({tuple(row[:2]) for row in hands["dessins"]}) == 200
    rows = [r for r in read_summary("scenes")[1] if r.attempt == 0]
    own = {(r.category, r.index): r.right for r in rows if r.held_out == (r.category not in SEEN_ONLY)}
    for category, index, oracle, *eyes in hands["dessins"]:
        assert own[category, index] == bool(oracle) and set(eyes) <= {0, 1}


def test_the_published_images_were_read_twice():
    """Les images de VISOR : deux lectures de chacune des deux cents, et une place si les deux objets sont là."""
    images = stored("visor-lu")["images"]
    assert len({row[0] for row in images}) == 200 and len({row[0].split("_")[0] for row in images}) == 50
    for _, _, _, _, *readings in images:
        assert len(readings) == 2
        for first, second, across, along in readings:
            there = bool(first and second)
            assert (
                (across in ("gauche", "droite", "egal")) == (along in ("dessus", "dessous", "egal")) == there
            )
