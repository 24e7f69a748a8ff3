"""Paires de textes : lecteur de fichiers, noms d'émojis, partage par familles, vocabulaire."""

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.data import pairs
from minidalle.data.pairs import Pair, Vocabulary, canonical, join, words
from minidalle.errors import MinidalleError
from minidalle.text import words as french_words

NAMES = pairs.emoji_names()


def write(folder, content):
    path = folder / "paires.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- mots ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L’île d'Elbe", ["l'", "île", "d'", "elbe"]),
        ("medium-dark", ["medium", "-", "dark"]),
        ("I don't know!", ["i", "don't", "know", "!"]),
        ("पळ! मी आले.", ["पळ", "!", "मी", "आले", "."]),  # les voyelles du marathi restent dans les mots
        ("cafe\u0301", ["café"]),
        ("  ", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_words_are_those_of_the_french_tokenizer():
    for pair in NAMES[::7]:
        assert words(pair.target) == french_words(pair.target)


@given(st.text(max_size=40))
def test_canonical_form_is_stable(text):
    once = canonical(text)
    assert canonical(once) == once
    assert "\n" not in once and "\t" not in once and once == once.strip()


def test_names_survive_cutting_and_joining():
    for pair in NAMES:
        assert join(words(pair.source)) == pair.source and join(words(pair.target)) == pair.target


# --- émojis ---


def test_emoji_names_are_bilingual_and_unique():
    found = {pair.source: pair.target for pair in NAMES}
    assert len(NAMES) == len(found) > 3900
    assert found["watermelon"] == "pastèque"
    assert found["woman detective medium-dark skin tone"] == "détective femme peau mate"
    assert len(set(found.values())) == len(found), "un nom français ne sert qu'une fois"


def test_skin_tones_share_a_family():
    families = Counter(pair.family for pair in NAMES)
    assert families["woman detective"] == 6  # sans teinte, et cinq teintes
    assert not any("skin tone" in family for family in families)
    (blond,) = (p for p in NAMES if p.source == "man medium-dark skin tone blond hair")
    assert blond.family == "man blond hair"


# --- lecteur ---


def test_reads_two_columns_and_ignores_the_rest(tmp_path):
    content = "\ufeffGo.\tVa !\tCC-BY 2.0 (France) Attribution\r\n\r\nWho?\tQui ?\r\nGo.\tVa !\tune autre\n"
    found = pairs.read_pairs(write(tmp_path, content))
    assert found == (Pair("go.", "va!", "go"), Pair("who?", "qui?", "who"))


def test_family_of_a_sentence_is_its_words(tmp_path):
    found = pairs.read_pairs(write(tmp_path, "Run!\tCours !\nRun.\tCourez.\n?\t?\n"))
    assert [pair.family for pair in found] == ["run", "run", "?"]


def test_limit_is_a_number_of_lines(tmp_path):
    path = write(tmp_path, "a\tb\nc\td\nligne fautive\n")
    assert len(pairs.read_pairs(path, limit=2)) == 2
    with pytest.raises(MinidalleError, match="ligne 3"):
        pairs.read_pairs(path, limit=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nsans tabulation\n", "ligne 2 .* tabulation"),
        (b"a\tb\n\nc\t \n", "ligne 3 .* vide"),
        (b"\tb\n", "ligne 1 .* vide"),
        ("a\tb\nété\tsummer\n".encode("latin-1"), "ligne 2 .*UTF-8"),
        ("a\tb\n".encode("utf-16"), "ligne 1 .*UTF-8"),
        (b"a\tb\nc\t" + b"x" * 1001, "ligne 2 .* 1000 caract"),
        (b"", "aucune paire"),
        (b"\n  \n", "aucune paire"),
    ],
)
def test_bad_files_say_which_line(tmp_path, content, message):
    with pytest.raises(MinidalleError, match=message):
        pairs.read_pairs(write(tmp_path, content))


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(MinidalleError, match="rien à cet endroit"):
        pairs.read_pairs(tmp_path / "absent.txt")
    with pytest.raises(MinidalleError, match="dossier"):
        pairs.read_pairs(tmp_path)


sides = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n", "\n\n"]))
@settings(max_examples=60)
def test_what_is_written_is_read(couples, end):
    couples = [(a, b) for a, b in couples if canonical(a) and canonical(b)]
    couples = couples or [("a", "b")]
    with tempfile.TemporaryDirectory() as folder:
        found = pairs.read_pairs(write(Path(folder), end.join("\t".join(couple) for couple in couples)))
    expected = dict.fromkeys((canonical(a), canonical(b)) for a, b in couples)
    assert [pair[:2] for pair in found] == list(expected)


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_any_file_is_read_or_refused_in_french(content):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), content)
        try:
            assert all(source and target for source, target, _ in pairs.read_pairs(path))
        except MinidalleError as error:
            assert "ligne" in str(error) or "aucune paire" in str(error)


@pytest.mark.skipif("MINIDALLE_DATA" not in os.environ, reason="MINIDALLE_DATA n'est pas défini")
def test_marathi_file():
    path = Path(os.environ["MINIDALLE_DATA"]) / "texte" / "mar.txt"
    if not path.exists():
        pytest.skip("MINIDALLE_DATA/texte/mar.txt est absent")
    found = pairs.read_pairs(path)
    assert len(found) > 33_000 and found[0] == Pair("go.", "जा.", "go")
    parts = pairs.split(found)
    assert all(len(part) > 2000 for part in parts)


# --- partage ---


def test_split_keeps_every_pair_once_and_no_family_twice():
    parts = pairs.split(NAMES, seed=3)
    assert sorted(sum(parts, ())) == sorted(NAMES)
    families = [{pair.family for pair in part} for part in parts]
    assert not families[0] & families[1] and not families[0] & families[2] and not families[1] & families[2]
    assert len(families[1]) == len(families[2]) == round(0.1 * len(set.union(*families)))


@pytest.mark.parametrize("seed", range(3))
def test_composed_pairs_are_made_of_known_words(seed):
    """Chaque mot, dans chaque langue, reste dans deux familles d'entraînement au moins."""
    train, composed, fresh = pairs.split(NAMES, seed)
    for side in (0, 1):
        families = {}
        for pair in train:
            for word in words(pair[side]):
                families.setdefault(word, set()).add(pair.family)
        assert all(len(families.get(word, ())) >= 2 for pair in composed for word in words(pair[side]))
        assert any(word not in families for pair in fresh for word in words(pair[side]))
        texts = {pair[side] for pair in train}
        assert not texts & {pair[side] for pair in (*composed, *fresh)}, "aucun texte des deux côtés"


def test_split_depends_on_its_seed_only():
    assert pairs.split(NAMES, 1) == pairs.split(NAMES, 1) != pairs.split(NAMES, 2)


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 0.5}, {"seen": 0}])
def test_impossible_splits(options):
    with pytest.raises(MinidalleError, match="Part"):
        pairs.split(NAMES, **options)


def test_too_few_pairs():
    with pytest.raises(MinidalleError, match="trop peu"):
        pairs.split(NAMES[:4])


def test_messages_join_names_on_both_sides():
    train = NAMES[:50]
    known = {pair.source: pair.target for pair in train}
    found = pairs.messages(train, 3, 40, seed=2)
    assert len(found) == 40 and found == pairs.messages(train, 3, 40, seed=2)
    assert found != pairs.messages(train, 3, 40, seed=3)
    for source, target, family in found:
        assert [known[name] for name in source.split(", ")] == target.split(", ")
        assert target.count(", ") == 2 and family == source == canonical(source)
    for bad in ((train, 0, 5), ((), 2, 5)):
        with pytest.raises(MinidalleError, match="Message"):
            pairs.messages(*bad)


# --- vocabulaire ---


def test_vocabulary_reserves_four_numbers():
    vocabulary = Vocabulary(["le chat", "le chien noir"])
    assert len(vocabulary) == 4 + 4 and "chat" in vocabulary and "souris" not in vocabulary
    assert vocabulary.encode("Le CHAT") == [4, vocabulary.encode("chat")[0]], "le plus fréquent d'abord"
    assert (vocabulary.pad_id, vocabulary.unknown_id, vocabulary.start_id, vocabulary.stop_id) == (0, 1, 2, 3)
    assert vocabulary.encode("<debut> souris")[-1] == 1


def test_special_tokens_cannot_be_written():
    """Un texte qui contient « <fin> » ne finit pas la phrase : ses signes sont séparés."""
    vocabulary = Vocabulary(["le <fin> chat <pad>"])
    assert not {0, 2, 3} & set(vocabulary.encode("le <fin> chat <pad> <debut>"))


@given(st.lists(sides, min_size=1, max_size=5))
def test_known_words_come_back(texts):
    texts = [text for text in texts if canonical(text)]
    if not texts:
        return
    vocabulary = Vocabulary(texts)
    for text in texts:
        ids = vocabulary.encode(text)
        assert all(4 <= i < len(vocabulary) for i in ids)
        assert vocabulary.decode([2, *ids, 3, 5, 0]) == canonical(text)


def test_least_drops_rare_words():
    vocabulary = Vocabulary(["a a b"], least=2)
    assert len(vocabulary) == 5 and vocabulary.decode(vocabulary.encode("a b")) == "a <unk>"
    with pytest.raises(MinidalleError, match="Aucun mot"):
        Vocabulary(["a"], least=2)


def test_unknown_number():
    with pytest.raises(MinidalleError, match="hors du vocabulaire"):
        Vocabulary(["a"]).decode([5])
