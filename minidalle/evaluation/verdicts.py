"""Les règles gelées de `hypotheses.toml`, appliquées à ce qui a été mesuré : chacune tient, est rejetée, ou ni l'un
ni l'autre.

Une règle rend trois réponses, jamais deux : ce que l'intervalle n'exclut pas n'est pas tranché. Les mesures viennent de
l'étude (`study_files.read_summary`), des bras de doses (`arms.Campaign`) et de `minidalle/results`.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np

from minidalle.evaluation.arms import Campaign, by_seed, near
from minidalle.evaluation.comparisons import Difference, difference, holm
from minidalle.evaluation.dose import dose_response
from minidalle.evaluation.proportions import above_chance, equivalence
from minidalle.evaluation.requests import STUDY
from minidalle.evaluation.statistics import Estimate, Undefined, bootstrap, wilson
from minidalle.evaluation.study_files import Row

HOLDS, REJECTED, OPEN = "tient", "rejetée", "non tranché"
MARGIN = 0.10  # écart sans importance, gelé
FEW = 30  # dessins en dessous desquels un modèle aveugle ne mesure pas le hasard
RESAMPLES = 1000


class Verdict(NamedTuple):
    """Ce que la règle gelée dit d'une hypothèse.

    Attributes:
        id: clé de `hypotheses`.
        answer: `HOLDS`, `REJECTED` ou `OPEN`.
        numbers: ce qui le porte : mesures et intervalles, par nom français ; des parts, à moins que le nom ne dise
            une autre unité.
    """

    id: str
    answer: str
    numbers: dict[str, Estimate]


def hypotheses() -> dict[str, dict]:
    """Les hypothèses gelées, par clé, dans leur ordre."""
    path = resources.files("minidalle.evaluation") / "hypotheses.toml"
    return {h["id"]: h for h in tomllib.loads(path.read_text(encoding="utf-8"))["hypotheses"]}


def answer(*parts: bool | None) -> str:
    """Tient si tout est vrai, rejetée si une part est fausse, non tranché sinon."""
    return REJECTED if False in parts else OPEN if None in parts else HOLDS


def over(found: Estimate, bar: float) -> bool | None:
    """L'intervalle est-il au-dessus de la barre ? Non s'il est en dessous ; None s'il la contient."""
    return True if found.low > bar else False if found.high < bar else None


# --- l'étude --------------------------------------------------------------------------------------


class Skill:
    """S = (A − k)/(1 − k) d'une catégorie, à calculer sur n'importe quel tirage de demandes.

    A et k viennent des mêmes dessins : un tirage retire des demandes entières, et refait les deux. k est le plus grand
    des deux hasards, la demande contraire et le modèle aveugle, celui-ci s'il a assez de dessins (`FEW`).
    """

    def __init__(
        self, rows: Sequence[Row], blind: Sequence[Row], category: str, held_out: bool, given: bool = False
    ) -> None:
        """Garde les lignes d'une catégorie.

        Args:
            given: seulement les dessins où sont les objets nommés.

        Raises:
            Undefined: il n'y en a aucune.
        """
        own, other = (
            [
                r
                for r in table
                if (r.category, r.held_out) == (category, held_out) and (r.present or not given)
            ]
            for table in (rows, blind)
        )
        if not own:
            raise Undefined(f"Aucun dessin ne mesure « {category} ».")
        other = other if len(other) >= FEW else []
        self.blind = np.array([False] * len(own) + [True] * len(other))
        self.right = np.array([r.right for r in (*own, *other)], float)
        self.turned = np.array([r.contrast_right for r in (*own, *other)], float)
        self.groups = [(category, b, r.index) for b, r in zip(self.blind, (*own, *other), strict=True)]

    def __call__(self, rows: np.ndarray) -> float:
        blind, right = self.blind[rows], self.right[rows]
        if blind.all():
            raise Undefined("Un tirage n'a aucun dessin du modèle.")
        chance = self.turned[rows][~blind].mean()
        if blind.any():
            chance = max(chance, right[blind].mean())
        return above_chance(right[~blind].mean(), chance)

    def estimate(self, level: float = 0.95) -> Estimate:
        """La mesure et son intervalle."""
        return bootstrap(self, self.groups, level=level, resamples=RESAMPLES)


def colours(rows: Sequence[Row], blind: Sequence[Row]) -> Verdict:
    found = Skill(rows, blind, "couleur", True).estimate()
    return Verdict("couleurs", answer(over(found, 0.5)), {"S de la couleur": found})


def images(rows: Sequence[Row], blind: Sequence[Row]) -> Verdict:
    """Rien n'est réservé dans « objet » : tous les noms ont été lus."""
    thing, texture = (
        Skill(rows, blind, category, held_out).estimate()
        for category, held_out in (("objet", False), ("texture", True))
    )
    parts = over(thing, 0.5), over(texture, 0.5)
    return Verdict("images", answer(*parts), {"S de l'objet": thing, "S de la texture": texture})


def binding(rows: Sequence[Row], held_out: bool = True) -> Verdict:
    """Sur des demandes vues, la mesure est un témoin ; l'hypothèse porte sur les réservées."""
    pairs = [r for r in rows if r.category == "paire" and r.held_out == held_out and (r.right or r.swapped)]
    found = wilson(sum(r.right for r in pairs), len(pairs))
    return Verdict("liaison", answer(over(found, 0.75)), {"bien liées": found})


def space(rows: Sequence[Row], blind: Sequence[Row], nats: Mapping[str, Sequence[float]]) -> Verdict:
    """L'hypothèse est qu'il ne comprend PAS : elle tient si l'adresse est nulle, loin de la couleur, et sans Δ.

    Args:
        nats: par changement de la légende, Δ en nats par image, et les bornes de son intervalle.
    """
    relation = Skill(rows, blind, "relation", True, given=True)
    found = relation.estimate()
    none = equivalence(relation.estimate, 0.0, MARGIN).equivalent or found.high < 0.15
    gap = _gaps(rows, blind)["relation"]
    inverse, colour = Estimate(*nats["relation inverse"]), Estimate(*nats["une autre couleur"])
    deaf = inverse.low <= 0 <= inverse.high or inverse.value < 0.1 * colour.value
    parts = (
        True if none else False if found.low > 0.15 else None,
        True if gap.p < 0.05 else False if gap.estimate.high < 0.3 else None,
        deaf,
    )
    numbers = {"S de la relation": found, "S de la couleur − S de la relation": gap.estimate}
    return Verdict("espace", answer(*parts), numbers | {"Δ de la relation inverse (nats)": inverse})


def _gaps(rows: Sequence[Row], blind: Sequence[Row]) -> dict[str, Difference]:
    """S de la couleur − S de chaque autre catégorie, contre 0,3 ; p ajustées sur la famille."""
    colour = Skill(rows, blind, "couleur", True)
    found = {}
    for category in STUDY:
        if category != "couleur":
            other = Skill(rows, blind, category, category != "objet", given=category == "relation")
            n = len(colour.groups)
            found[category] = difference(
                lambda z, n=n: colour(z[z < n]),
                lambda z, n=n, other=other: other(z[z >= n] - n),
                [*colour.groups, *other.groups],
                null=0.3,
                alternative="greater",
                resamples=RESAMPLES,
            )
    adjusted = holm([gap.p for gap in found.values()])
    return {name: gap._replace(p=float(p)) for (name, gap), p in zip(found.items(), adjusted, strict=True)}


def judge(preferred: int, drawings: int) -> Verdict:
    """CLIP préfère la demande à la relation inverse, sur `preferred` des `drawings` dessins justes."""
    found = wilson(preferred, drawings)
    same = equivalence(lambda level: wilson(preferred, drawings, level), 0.5, MARGIN).equivalent
    apart = found.low > 0.5 + MARGIN or found.high < 0.5 - MARGIN
    parts = True if same else False if apart else None
    return Verdict("juge", answer(parts), {"CLIP préfère la demande": found})


def published(right: Sequence[bool], inverse: Sequence[bool], groups: Sequence[object]) -> Verdict:
    """Le vrai DALL·E mini : relation demandée contre relation inverse, parmi les images où sont les deux objets.

    Args:
        right, inverse: verdicts des mêmes images, (n,).
        groups: phrase de chaque image ; plusieurs images d'une phrase se ressemblent.
    """
    right, inverse = np.asarray(right, float), np.asarray(inverse, float)

    def gap(level: float) -> Estimate:
        return bootstrap(lambda rows: (right[rows] - inverse[rows]).mean(), groups, level=level)

    found = gap(0.95)
    same = equivalence(gap, 0.0, MARGIN).equivalent
    parts = True if same else False if found.low > MARGIN or found.high < -MARGIN else None
    numbers = {"demandée − inverse": found, "part juste": bootstrap(lambda z: right[z].mean(), groups)}
    return Verdict("publie", answer(parts), numbers)


def wording(report: Mapping[str, Mapping]) -> Verdict:
    """La règle est celle de `formulation.decide`.

    Args:
        report: `minidalle/results/formulation.json` : par variante, « 1 » ou « 0 » par demande.
    """
    from minidalle.evaluation.formulation import FROZEN, VARIANTS, decide, gap

    plain, *others = ([c == "1" for c in report["variantes"][name]["justes"]] for name in ("simple", *FROZEN))
    gaps = [gap(other, plain) for other in others]
    numbers = {VARIANTS[name].label: g.test.difference for name, g in zip(FROZEN, gaps, strict=True)}
    return Verdict("formulation", decide(gaps), numbers)


# --- les bras -------------------------------------------------------------------------------------


def dose(campaign: Campaign) -> Verdict:
    """Tient : « les données ». Rejetée : il faut à la relation dix fois la dose de la couleur."""
    from minidalle.evaluation.arms import counts, share

    fits = []
    for subject in ("relation", "couleur"):
        table = [
            (d, *counts(arm["fin"][subject]["lues"]))
            for d in campaign.doses
            for arm in campaign.arms(subject, d).values()
        ]
        fits.append(dose_response(*zip(*table, strict=True), 0.25, target=0.625, resamples=300))
    pair = [campaign.arms(subject, 1.0) for subject in ("relation", "couleur")]
    gap = by_seed([share(pair[0][s]) - share(pair[1][s]) for s in pair[0] if s in pair[1]])
    ratio = middle(fits[0]) / middle(fits[1])
    ratio = Estimate(float(ratio[0]), *map(float, np.percentile(ratio[1:], [2.5, 97.5])))
    slope = fits[0].slope
    harder = over(ratio, 10.0)
    parts = over(slope, 0.0), gap.value >= -MARGIN, None if harder is None else not harder
    numbers = {"pente b (sans unité)": slope, "relation − couleur, dose pleine": gap}
    return Verdict("dose", answer(*parts), numbers | {"dose de la relation / dose de la couleur": ratio})


def middle(fit) -> np.ndarray:
    """Dose de mi-hauteur d'une `DoseResponse`, puis celle de chacun de ses tirages."""
    values = np.vstack([[fit.intercept.value, fit.slope.value], fit.draws])
    return np.exp(-values[:, 0] / values[:, 1])


def mirror(campaign: Campaign) -> Verdict:
    _, side = campaign.compare("retournées : gauche, droite")
    before, after = campaign.compare("retournées : dessus, dessous")
    numbers = {"gauche et droite": by_seed(side), "dessus et dessous, écart": by_seed(after - before)}
    return Verdict("miroir", answer(near(side, 0.5), near(after - before, 0.0)), numbers)


def order(campaign: Campaign) -> Verdict:
    _, after = campaign.compare("mots mélangés : sens, bon axe")
    return Verdict("ordre", answer(near(after, 0.5)), {"bon sens, sur le bon axe": by_seed(after)})


def positions(campaign: Campaign) -> Verdict:
    return _accused("positions", campaign, "positions 1d, dose d'un quart")


def encoder(campaign: Campaign) -> Verdict:
    return _accused("encodeur", campaign, "encodeur–décodeur, dose d'un quart")


def _accused(name: str, campaign: Campaign, case: str) -> Verdict:
    """Le bras accusé place-t-il moins bien ?"""
    before, after = campaign.compare(case)
    gap = by_seed(after - before)
    lost = True if gap.value < -MARGIN and gap.high < 0 else False if near(after - before, 0.0) else None
    return Verdict(name, answer(lost), {"écart": gap})


ARMS: dict[str, Callable[[Campaign], Verdict]] = {
    "dose": dose,
    "miroir": mirror,
    "positions": positions,
    "encodeur": encoder,
    "ordre": order,
}
