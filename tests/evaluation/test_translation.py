"""Notes de traduction : parité avec sacrebleu, intervalles, familles, comparaison appariée."""

import json
from importlib import resources

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.evaluation.translation import METRICS, compare, evaluate

REFERENCES = ["le chat noir dort", "une pomme rouge", "drapeau islande", "femme qui court vers la droite"] * 5
GOOD = ["le chat noir dort", "une pomme verte", "drapeau islande", "femme qui marche vers la droite"] * 5
BAD = ["le chien", "une poire", "carte islande", "homme assis"] * 5

texts = st.lists(st.sampled_from(["chat", "chien", "rouge", "le", "noir"]), min_size=1, max_size=6).map(
    " ".join
)


@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=8))
@settings(max_examples=15)
def test_scores_are_those_of_sacrebleu(couples):
    hypotheses, references = map(list, zip(*couples, strict=True))
    scores = evaluate(hypotheses, references)
    assert scores["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score)
    assert scores["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    assert scores["exact"].value == pytest.approx(100 * np.mean([h == r for h, r in couples]))
    for value, low, high in scores.values():
        assert 0 <= low <= high <= 100.01
        assert low - 1e-9 <= value <= high + 1e-9 or len(couples) < 5


def test_perfect_and_hopeless_translations():
    assert evaluate(REFERENCES, REFERENCES)["exact"] == (100, 100, 100)
    assert evaluate(REFERENCES, REFERENCES)["chrf"].low == pytest.approx(100)
    assert evaluate(["zzz"] * 20, REFERENCES)["exact"] == (0, 0, 0)


def test_exact_interval_is_the_bootstrap_of_a_proportion():
    """Vingt phrases, dix justes : l'écart-type d'une proportion, à peu près normale."""
    hypotheses = REFERENCES[:10] + ["non"] * 10
    value, low, high = evaluate(hypotheses, REFERENCES)["exact"]
    half = 1.96 * 100 * np.sqrt(0.25 / 20)
    assert value == 50
    assert low == pytest.approx(50 - half, abs=4) and high == pytest.approx(50 + half, abs=4)


def test_level_widens_the_interval():
    narrow, wide = (evaluate(GOOD, REFERENCES, level=level)["chrf"] for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_sentences_of_a_family_are_resampled_together():
    """Chaque phrase répétée vingt fois n'apprend rien de plus : l'intervalle est celui des phrases seules."""
    hypotheses, references = GOOD[:4] + BAD[:4], REFERENCES[:4] * 2
    alone = evaluate(hypotheses, references)
    families = [i for i in range(8) for _ in range(20)]
    repeated = [[texts[i] for i in families] for texts in (hypotheses, references)]
    together = evaluate(*repeated, families)
    naive = evaluate(*repeated)
    for metric in ("exact", "chrf"):
        assert together[metric] == pytest.approx(alone[metric])
        assert naive[metric].high - naive[metric].low < 0.5 * (alone[metric].high - alone[metric].low)


def test_comparison_is_paired():
    gain, loss = compare(GOOD, BAD, REFERENCES), compare(BAD, GOOD, REFERENCES)
    for metric in ("exact", "chrf", "bleu"):
        difference = evaluate(GOOD, REFERENCES)[metric].value - evaluate(BAD, REFERENCES)[metric].value
        assert gain[metric].value == pytest.approx(difference) == pytest.approx(-loss[metric].value)
        assert gain[metric].low > 0 > loss[metric].high
    same = compare(GOOD, GOOD, REFERENCES)
    assert same["chrf"] == same["bleu"] == same["exact"] == (0, 0, 0), "sur les mêmes tirages, aucun écart"


def test_families_keep_their_order_of_appearance_out_of_the_scores():
    groups = ["b", "a", "b", "c"] * 5
    assert evaluate(GOOD, REFERENCES, groups)["chrf"].value == evaluate(GOOD, REFERENCES)["chrf"].value


@pytest.mark.parametrize(
    ("hypotheses", "references", "groups"),
    [
        (["a"], ["a", "b"], None),
        (["a", "b"], ["a", "b"], ["x"]),
        (["a", "b"], ["a", "b"], "xx"),
        ([], [], None),
    ],
)
def test_impossible_requests(hypotheses, references, groups):
    with pytest.raises(MinidalleError, match="autant|deux familles"):
        evaluate(hypotheses, references, groups)


# --- résultats rangés ---


def test_stored_marathi_results_are_whole():
    """`python -m tools.marathi` a tout écrit, et l'attention y gagne."""
    stored = resources.files("minidalle") / "results" / "marathi.json"
    report = json.loads(stored.read_text(encoding="utf-8"))
    assert report["graine"] == 0 and report["test"] == 1000 and report["paires"] > 33_000
    for name in ("avec", "sans"):
        scores = report["modeles"][name]
        for metric in METRICS:
            value, low, high = scores[metric]
            assert 0 <= low < value < high <= 100
        assert sum(part["n"] for part in scores["longueurs"]) == report["test"]
    ours, theirs = (report["modeles"][name] for name in ("avec", "sans"))
    for metric in METRICS:
        gain, low, _ = report["ecart"][metric]
        assert low > 0 and gain == pytest.approx(ours[metric][0] - theirs[metric][0], abs=0.02)
    assert 0.9 < ours["parametres"] / theirs["parametres"] <= 1


def test_translators_are_judged_on_every_exam_and_seed():
    """`python -m tools.traducteurs` a tout écrit."""
    stored = resources.files("minidalle") / "results" / "traducteurs.json"
    students = json.loads(stored.read_text(encoding="utf-8"))
    assert {name: [row["graine"] for row in rows] for name, rows in students.items()} == {
        "sans": [0, 1, 2],
        "avec": [0, 1, 2],
        "transformer": [0, 1, 2],
        "sans, trois fois plus": [0],
    }
    for row in (row for rows in students.values() for row in rows):
        notes = [note for exam, note in row.items() if exam not in ("graine", "pas")]
        assert len(notes) == 5 and all(note.keys() == {"exact", "chrf"} for note in notes)
        assert all(0 <= value <= 100 for note in notes for value in note.values())
