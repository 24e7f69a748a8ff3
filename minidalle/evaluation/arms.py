"""Les bras rangés par `tools/dose.py` : les retrouver, lire leurs parts justes, les comparer graine par graine.

Un bras est un petit modèle entraîné ; sa table de dessins est (demandée, lue) : quatre réponses demandées, et six
colonnes, les quatre réponses lues, une réponse indécise, et une forme absente.
"""

import json
from collections.abc import Mapping
from importlib import resources

import numpy as np

from minidalle.evaluation.proportions import equivalence
from minidalle.evaluation.statistics import Estimate, Undefined

FLIPPED, SHUFFLED, BLIND = "images retournées", "mots mélangés", "légendes permutées"
OPPOSED = "légendes contraires"
ONE, TWO = "positions 1d", "encodeur et décodeur"
FULL, QUARTER = ("relation", 1.0), ("relation", 0.25)
CASES = {  # bras de référence, ce que change le bras accusé, et la part qu'on regarde
    "retournées : gauche, droite": (FULL, {"cause": FLIPPED}, {"axis": 0, "same_axis": True}),
    "retournées : dessus, dessous": (FULL, {"cause": FLIPPED}, {"axis": 1, "same_axis": True}),
    "retournées : couleur (témoin)": (("couleur", 1.0), {"cause": FLIPPED}, {}),
    "mots mélangés : sens, bon axe": (FULL, {"cause": SHUFFLED}, {"same_axis": True}),
    "mots mélangés : couleur (témoin)": (("couleur", 1.0), {"cause": SHUFFLED}, {}),
    "positions 1d, dose d'un quart": (QUARTER, {"base": ONE}, {}),
    "positions 1d, dose pleine": (FULL, {"base": ONE}, {}),
    "positions 1d : couleur, un quart (témoin)": (("couleur", 0.25), {"base": ONE}, {}),
    "encodeur–décodeur, dose d'un quart": (QUARTER, {"base": TWO}, {}),
    "encodeur–décodeur, dose pleine": (FULL, {"base": TWO}, {}),
    "encodeur–décodeur : couleur, un quart (témoin)": (("couleur", 0.25), {"base": TWO}, {}),
    "légendes permutées (aveugle)": (FULL, {"cause": BLIND}, {}),
}


class Campaign:
    """Tous les bras d'une campagne.

    Attributes:
        report: le contenu de `minidalle/results/dose.json`.
    """

    def __init__(self, report: Mapping[str, object] | None = None) -> None:
        """Lit la campagne livrée, si l'on n'en donne pas une autre."""
        if report is None:
            path = resources.files("minidalle") / "results" / "dose.json"
            report = json.loads(path.read_text(encoding="utf-8"))
        self.report = report

    @property
    def doses(self) -> list[float]:
        """Doses essayées, sans la nulle, croissantes."""
        arms = self.report["bras"].values()
        return sorted({arm["dose"] for arm in arms if arm["times"] == 1 and arm["dose"]})

    def arms(
        self, subject: str, dose: float, base: str = "référence", cause: str = "", times: int = 1
    ) -> dict[int, dict]:
        """Les bras de ce nom, par graine ; ceux qui manquent manquent."""
        key = {"subject": subject, "dose": dose, "base": base, "cause": cause, "times": times}
        found = [a for a in self.report["bras"].values() if all(a[name] == key[name] for name in key)]
        return {arm["seed"]: arm for arm in sorted(found, key=lambda arm: arm["seed"])}

    def compare(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Parts de la référence et du bras accusé, (graines,) chacune, sur les graines qu'ils ont en commun.

        Args:
            case: clé de `CASES`.
        """
        (subject, dose), change, options = CASES[case]
        reference, accused = self.arms(subject, dose), self.arms(subject, dose, **change)
        seeds = [seed for seed in reference if seed in accused]
        return tuple(np.array([share(arms[s], **options) for s in seeds]) for arms in (reference, accused))


def counts(table: np.ndarray, axis: int | None = None, same_axis: bool = False) -> tuple[int, int]:
    """Dessins justes, dessins jugés.

    Args:
        table: (4, 6), voir le module.
        axis: ne compter que les demandes d'un axe : 0, gauche et droite ; 1, dessus et dessous.
        same_axis: ne juger que les dessins du bon axe ; sinon, tous ceux où sont les deux formes.
    """
    table = np.asarray(table)
    rows = range(4) if axis is None else (2 * axis, 2 * axis + 1)
    right = sum(table[i, i] for i in rows)
    judged = (table[i, 2 * (i // 2) : 2 * (i // 2) + 2] if same_axis else table[i, :5] for i in rows)
    return int(right), int(sum(part.sum() for part in judged))


def share(arm: Mapping, subject: str | None = None, kind: str = "lues", **options) -> float:
    """Part juste d'un bras, à la fin.

    Args:
        subject: « relation » ou « couleur » ; celui du bras, à moins d'un autre.
        kind: légendes « lues » à l'entraînement, ou « reservees ».
        options: voir `counts`.
    """
    right, judged = counts(arm["fin"][subject or arm["subject"]][kind], **options)
    if not judged:
        raise Undefined("Aucun dessin de ce bras ne montre les deux formes.")
    return right / judged


def by_seed(values: np.ndarray, level: float = 0.95) -> Estimate:
    """Moyenne de mesures, une par entraînement, et son intervalle de Student.

    Raises:
        Undefined: moins de deux entraînements.
    """
    from scipy.stats import t as student

    values = np.asarray(values, float)
    if len(values) < 2:
        raise Undefined("Un intervalle veut au moins deux entraînements.")
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Estimate(*map(float, (values.mean(), values.mean() - half, values.mean() + half)))


def near(values: np.ndarray, target: float, margin: float = 0.10) -> bool | None:
    """La moyenne des entraînements vaut-elle `target` ? Équivalente, différente, ou ni l'un ni l'autre (None)."""
    if equivalence(lambda level: by_seed(values, level), target, margin).equivalent:
        return True
    _, low, high = by_seed(values)
    return False if high < target - margin or low > target + margin else None
