"""Dans le PDF, les solutions des exercices quittent le chapitre pour une annexe ; le site, lui, les cache sur place.

Chaque solution y est titrée du numéro de son exercice et de sa page ; l'exercice dit la page de sa solution.
"""

from itertools import groupby

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import exercise_latex_number_reference, is_exercise_node, solution_node

ROOM = r"\roomfor{10\baselineskip}"  # celle que _latex/minidalle.sty garde à un cadre
TITLE = "Solutions des exercices"
INTRODUCTION = (
    "Chaque section porte le numéro du chapitre dont elle résout les exercices ; "
    "chaque titre dit la page de l’énoncé."
)


class GatherSolutions(SphinxPostTransform):
    """Déplace les solutions du livre assemblé, une fois leurs titres et leurs renvois résolus."""

    formats = ("latex",)
    default_priority = 30  # après sphinx-exercise (20 à 22), avant les parties du livre (700)

    def run(self) -> None:
        exercises = {node["label"]: node for node in self.document.findall(is_exercise_node)}
        _mend_references(self.document, set(exercises))
        solutions = list(self.document.findall(solution_node))
        if not solutions:
            return
        for (
            exercise
        ) in exercises.values():  # le saut de page avant son étiquette, sinon elle reste sur l'autre page
            exercise.parent.insert(exercise.parent.index(exercise), _raw(ROOM))
        appendix = nodes.section("", nodes.title("", TITLE), nodes.paragraph("", INTRODUCTION))
        for docname, group in groupby(solutions, lambda node: _docname(self.env, node)):
            # Ce nœud dit de quel chapitre viennent les renvois et les étiquettes qu'il contient.
            file = addnodes.start_of_file(docname=docname)
            for solution in group:
                exercise, label = exercises[solution["target_label"]], f"{docname}:{solution['label']}"
                exercise += _raw(
                    rf"\par\nopagebreak\hfill\hyperref[{label}]{{\emph{{Solution page~\pageref*{{{label}}}}}}}"
                )
                solution.parent.remove(solution)
                file += _heading(exercise, label)
                file += solution.children[1:]  # sans le titre, ni le cadre
            appendix += _number(self.env, docname)
            appendix += nodes.section("", _title(self.env, docname), file)
        _insert(self.document, addnodes.start_of_file("", appendix, docname="solutions"), self.config)


def _mend_references(document: nodes.document, labels: set[str]) -> None:
    """D'un chapitre à l'autre, sphinx-exercise laisse au renvoi une cible que LaTeX n'a pas : « Exercice ?? »."""
    for node in list(document.findall(addnodes.number_reference)):
        if (label := node.get("refuri", "").rpartition("#")[2]) in labels:
            node.replace_self(exercise_latex_number_reference("", "", *node.children, refid=label))


def _docname(env: BuildEnvironment, solution: nodes.Element) -> str:
    return env.sphinx_exercise_registry[solution["label"]]["docname"]


def _title(env: BuildEnvironment, docname: str) -> nodes.title:
    return nodes.title("", "", *(child.deepcopy() for child in env.titles[docname].children))


def _number(env: BuildEnvironment, docname: str) -> list[nodes.Node]:
    """De quoi donner à la section le numéro du chapitre, s'il en a un."""
    number = env.toc_secnumbers.get(docname, {}).get("")
    return [_raw(rf"\setcounter{{section}}{{{number[0] - 1}}}")] if number else []


def _heading(exercise: nodes.Element, label: str) -> nodes.rubric:
    """« Exercice 3.1, page 57 » : le titre est celui de l'exercice, qu'il désigne."""
    target = f"exercise:{exercise['label']}"
    opening = _raw(rf"\phantomsection\label{{{label}}}\hyperref[{target}]{{")
    closing = _raw(rf"}}, page~\pageref{{{target}}}")
    return nodes.rubric("", "", opening, *(child.deepcopy() for child in exercise[0].children), closing)


def _raw(latex: str) -> nodes.raw:
    return nodes.raw("", latex, format="latex")


def _insert(document: nodes.document, appendix: nodes.Element, config) -> None:
    """Pose l'annexe devant la page que nomme `solutions_before`, sinon à la fin."""
    for file in document.findall(addnodes.start_of_file):
        if file["docname"] == config.solutions_before:
            file.parent.insert(file.parent.index(file), appendix)
            return
    document += appendix


def setup(app: Sphinx) -> dict:
    app.add_config_value("solutions_before", "", "env", str)
    app.add_post_transform(GatherSolutions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
