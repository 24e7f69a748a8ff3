"""Ce que partagent les outils de `tools/`."""

import pytest

from minidalle.errors import MinidalleError
from tools.command import launch


def test_an_expected_error_is_one_sentence_and_code_2(capsys):
    def fail(word):
        raise MinidalleError(f"Il manque {word} : le donner.")

    with pytest.raises(SystemExit) as ended:
        launch(fail, "un dossier")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "Il manque un dossier : le donner.\n")


@pytest.mark.parametrize("code", [0, 1, None])
def test_otherwise_the_code_is_that_of_the_tool(code):
    with pytest.raises(SystemExit) as ended:
        launch(lambda: code)
    assert ended.value.code == code
