"""Le LaTeX que Sphinx écrit, retouché avant xelatex."""

import pytest

from _ext.finishing import tidy_latex

PAR = "\\sphinxAtStartPar\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            f"\\label{{a}}\n\\index{{vu@\\spxentry{{vu}}}}\\index{{b@\\spxentry{{b}}}}\\ignorespaces \n{PAR}Texte.",
            f"\\label{{a}}\n{PAR}\\index{{vu@\\spxentry{{vu}}}}\\index{{b@\\spxentry{{b}}}}\\ignorespaces \nTexte.",
        ),
        (f"\\sphinxtoprule\n{PAR}\n&\n{PAR}A\\\\", f"\\sphinxtoprule\n&\n{PAR}A\\\\"),
        (f"A&\n{PAR}\n\\\\\n\\sphinxhline", "A&\n\\\\\n\\sphinxhline"),
        ("code\n\n\n\\end{sphinxVerbatim}\n\nTexte", "code\n\\end{sphinxVerbatim}\n\nTexte"),
    ],
)
def test_latex_is_tidied(source: str, expected: str) -> None:
    assert tidy_latex(source) == expected


def test_the_rest_is_left_alone() -> None:
    text = f"{PAR}Un paragraphe.\n\n{PAR}Un autre.\n\\index{{a@\\spxentry{{a}}}}\n\\begin{{itemize}}"
    assert tidy_latex(text) == text
