import json
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.text import (
    ByteTokenizer,
    Encoding,
    Tokenizer,
    load_tokenizer,
    normalize,
    normalize_ascii,
    words,
)

CORPUS = [
    "Un mouton à gauche d’un carré bleu.",
    "L'étoile rouge est au-dessus de la maison, près de l'arbre (vert)…",
    "Aujourd'hui, un cœur vert : il n'y a qu'une île !",
    "Des œufs à pois et un château rayé",
]
TOKENIZER = Tokenizer.train(CORPUS, 256)
SEEN = sorted({word for text in CORPUS for word in words(text)})

prompts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*SEEN, "licorne", "d’", "日本", " ", "\u202f"]), max_size=12).map(" ".join),
)


def test_import_is_light():
    code = "import sys, minidalle.text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Un\tMOUTON \n bleu ", "un mouton bleu"),
        ("d’un", "d'un"),
        ("rouge\u202f:\u00a0vert", "rouge : vert"),
        ("e\u0301toile", "étoile"),
        ("ŒUF À CÔTÉ", "œuf à côté"),
        ("▁", "_"),
        ("a\ud800", "a\ufffd"),
        ("", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@given(prompts)
@example("\u0130\u2126\u212a ΑΣ")
def test_normalize_is_idempotent(text):
    once = normalize(text)
    assert normalize(once) == once == once.strip()
    assert unicodedata.is_normalized("NFC", once)
    assert not set(once) & set("’\u00a0\u202f\n\t") and "  " not in once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L’arbre d'une île", ["l'", "arbre", "d'", "une", "île"]),
        ("qu'il s'en aille jusqu'à", ["qu'", "il", "s'", "en", "aille", "jusqu'", "à"]),
        ("lorsqu'un puisqu'elle quoiqu'on", ["lorsqu'", "un", "puisqu'", "elle", "quoiqu'", "on"]),
        ("aujourd'hui, presqu'île", ["aujourd'hui", ",", "presqu'île"]),
        ("au-dessus", ["au", "-", "dessus"]),
        ("« oui » !", ["«", "oui", "»", "!"]),
        ("64×64", ["64", "×", "64"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(prompts)
def test_words_lose_nothing(text):
    assert "".join(words(text)) == normalize(text).replace(" ", "")


def test_special_tokens():
    assert (Tokenizer.pad_id, Tokenizer.unknown_id, Tokenizer.start_id) == (0, 1, 2)
    # Écrits par l'utilisateur, leurs noms sont du texte comme un autre.
    assert not {0, 2} & set(TOKENIZER.encode("<pad> <debut>").ids)


def test_known_text_round_trips_exactly():
    for text in CORPUS:
        encoding = TOKENIZER.encode(text)
        assert (encoding.unknown, encoding.dropped) == ([], [])
        assert TOKENIZER.decode(encoding.ids) == normalize(text)


@given(st.lists(st.sampled_from(SEEN), max_size=20).map(" ".join))
def test_known_words_round_trip(text):
    encoding = TOKENIZER.encode(text)
    assert words(TOKENIZER.decode(encoding.ids)) == words(text)
    assert 1 not in encoding.ids


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4))
@example(["▁a _"])
@example(["l ' l' 'l' -'-"])
def test_any_corpus_round_trips(corpus):
    if not any(words(text) for text in corpus):
        return
    tokenizer = Tokenizer.train(corpus, 400)
    for text in corpus:
        encoding = tokenizer.encode(text)
        assert encoding.unknown == []
        assert words(tokenizer.decode(encoding.ids)) == words(text)


@given(prompts)
def test_ids_are_in_the_vocabulary(text):
    ids = TOKENIZER.encode(text).ids
    assert all(1 <= i < len(TOKENIZER) and i != 2 for i in ids)
    TOKENIZER.decode(ids)


@given(prompts)
def test_unknown_words_are_reported(text):
    encoding = TOKENIZER.encode(text)
    assert encoding.dropped == []
    assert len(encoding.unknown) == len(set(encoding.unknown))
    assert set(encoding.unknown) == set(words(text)) - set(SEEN)
    # Un inconnu n'est pas effacé pour autant : chaque mot garde au moins un jeton.
    assert len(encoding.ids) >= len(words(text))


def test_unknown_words_keep_the_order_of_the_prompt():
    assert TOKENIZER.encode("un zèbre, un yack, un zèbre").unknown == ["zèbre", "yack"]
    assert TOKENIZER.encode("un carr").unknown == ["carr"]  # un morceau de mot connu n'est pas connu


@given(prompts, st.integers(1, 12))
@example("un mouton à gauche d'un carré bleu", 4)
@example("extraordinairement vert", 3)
def test_long_prompts_lose_whole_words_and_say_which(text, max_length):
    encoding = TOKENIZER.encode(text, max_length)
    found = words(text)
    kept = found[: len(found) - len(encoding.dropped)]
    assert kept + encoding.dropped == found
    assert set(encoding.unknown) == set(kept) - set(SEEN)
    assert len(encoding.ids) <= max_length
    full = TOKENIZER.encode(text).ids
    assert encoding.ids == full[: len(encoding.ids)]
    # Coupé ni plus tôt ni plus tard : le mot suivant n'aurait pas tenu, aucun n'est à moitié gardé.
    lengths = np.cumsum([len(TOKENIZER.encode(word).ids) for word in found])
    assert len(kept) == np.count_nonzero(lengths <= max_length)
    assert len(encoding.ids) == (lengths[len(kept) - 1] if kept else 0)


@pytest.mark.parametrize("max_length", [0, -3])
def test_impossible_length(max_length):
    with pytest.raises(MinidalleError, match=f"\\({max_length}\\)"):
        TOKENIZER.encode("un mouton", max_length)


def test_empty_prompt():
    assert TOKENIZER.encode(" \u202f ") == Encoding([], [], [])
    assert TOKENIZER.decode([]) == ""


def test_elided_word_is_the_same_token_as_elsewhere():
    assert TOKENIZER.encode("d'un").ids[1:] == TOKENIZER.encode("un").ids


def test_apostrophes_and_spaces_do_not_matter():
    assert TOKENIZER.encode("D’un\u202fcarré") == TOKENIZER.encode("d'un carré")


def test_decode_skips_padding_and_shows_the_unknown():
    ids = TOKENIZER.encode("un mouton").ids
    assert TOKENIZER.decode([2, *ids, 0, 0]) == "un mouton"
    assert TOKENIZER.decode(np.array(ids)) == "un mouton"
    assert "<unk>" in TOKENIZER.decode(TOKENIZER.encode("un 日本").ids)


@pytest.mark.parametrize("token_id", [-1, len(TOKENIZER)])
def test_decode_rejects_foreign_ids(token_id):
    with pytest.raises(MinidalleError, match=str(token_id)):
        TOKENIZER.decode([token_id])


def test_training_is_deterministic_and_bounded():
    assert Tokenizer.train(iter(CORPUS), 256).to_json() == TOKENIZER.to_json()
    small = Tokenizer.train(CORPUS, 50)
    assert len(small) == 50 and small.encode(CORPUS[0]).unknown == []
    assert len(TOKENIZER) <= 256


@pytest.mark.parametrize("vocab_size", [-1, 0, 3, 20])
def test_too_small_vocabulary(vocab_size):
    with pytest.raises(MinidalleError, match="au moins") as caught:
        Tokenizer.train(CORPUS, vocab_size)
    advised = int(str(caught.value).split()[-1].rstrip("."))
    assert len(Tokenizer.train(CORPUS, advised)) == advised


@pytest.mark.parametrize("corpus", [[], ["", " \u00a0"]])
def test_empty_corpus(corpus):
    with pytest.raises(MinidalleError, match="aucun mot"):
        Tokenizer.train(corpus, 100)


@given(prompts)
def test_json_round_trip(text):
    again = Tokenizer.from_json(TOKENIZER.to_json())
    assert again.to_json() == TOKENIZER.to_json() and len(again) == len(TOKENIZER)
    assert again.encode(text, 8) == TOKENIZER.encode(text, 8)


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path / "vocabulaire.json")
    assert Tokenizer.load(tmp_path / "vocabulaire.json").to_json() == TOKENIZER.to_json()
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulaire.json"]


def spoiled(**changes) -> str:
    return json.dumps({**json.loads(TOKENIZER.to_json()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bonjour",
        "[]",
        "{}",
        "[" * 100_000,
        TOKENIZER.to_json()[:-50],
        spoiled(bpe={}),
        spoiled(bpe=None),
        spoiled(known="mouton"),
        spoiled(known=[1, 2]),
        spoiled(known=None),
        TOKENIZER.to_json().replace("<debut>", "<s>"),
    ],
)
def test_foreign_json(text, tmp_path):
    with pytest.raises(MinidalleError, match="vocabulaire"):
        Tokenizer.from_json(text)
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(MinidalleError, match=r"« .*v\.json »"):
        Tokenizer.load(path)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c))
)
def test_any_json_is_refused_politely(content):
    for candidate in (content, {"bpe": content, "known": []}):
        with pytest.raises(MinidalleError):
            Tokenizer.from_json(json.dumps(candidate))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_file_is_named(content, tmp_path):
    path = tmp_path / "v.json"
    if content:
        path.write_bytes(content)
    with pytest.raises(MinidalleError, match=r"« .*v\.json »"):
        Tokenizer.load(path)


# --- le segmenteur des modèles publiés ---

ENGLISH = [
    "a red apple on the table, next to a sheep",
    "the blue square's left side",
    "3 grapes, a red_apple!",
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Un petit vocabulaire d'octets, dans les deux fichiers publiés."""
    from tokenizers import Tokenizer as Peer
    from tokenizers import models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("octets")
    bpe = Peer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special, alphabet = ["<s>", "<pad>", "</s>", "<unk>"], pre_tokenizers.ByteLevel.alphabet()
    # Sans « z » : il y a des mots inconnus.
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=[c for c in alphabet if c != "z"],
        show_progress=False,
    )
    bpe.train_from_iterator(2 * ENGLISH, trainer)
    model = json.loads(bpe.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def octets(published):
    return ByteTokenizer.from_files(published / "vocab.json", published / "merges.txt")


@pytest.fixture(scope="module")
def peer(published):
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    module = pytest.importorskip("min_dalle.text_tokenizer")
    # L'importer coupe le gradient et change le nombre de fils de tout le programme.
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    vocab = json.loads((published / "vocab.json").read_text(encoding="utf-8"))
    merges = (published / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    return module.TextTokenizer(vocab, merges)


@pytest.mark.parametrize(
    "text",
    [
        "",
        *ENGLISH,
        "A Red APPLE",
        "  grapes,   apples! ",
        "🐑 and 🍎 on the table",
        'zebra (xylophone) $%&* "',
        "<pad> a",
    ],
)
def test_bytes_are_numbered_as_min_dalle_does(octets, peer, text):
    assert octets.encode(text).ids == peer.tokenize(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_any_ascii_text_is_numbered_as_min_dalle_does(octets, peer, text):
    assert octets.encode(text).ids == peer.tokenize(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L’été, un ŒUF à Noël", "l'ete, un oeuf a noel"),
        ("un\tmouton\n\u00a0bleu", "un mouton bleu"),
        ("кот 日本 café", "cafe"),
        ("🐑", "ewe"),
    ],
)
def test_accents_fall_and_letters_stay(text, expected):
    assert normalize_ascii(text) == expected
    assert normalize_ascii(expected) == expected


def test_bytes_have_a_beginning_an_end_and_a_limit(octets):
    assert octets.encode("") == Encoding([0, 2], [], [])
    assert (octets.start_id, octets.pad_id, octets.end_id, octets.unknown_id) == (0, 1, 2, 3)
    whole = octets.encode("red apple, sheep")
    assert whole.ids[0] == 0 and whole.ids[-1] == 2 and octets.decode(whole.ids) == "red apple, sheep"
    cut = octets.encode("red apple, sheep", len(whole.ids) - 1)
    assert cut.dropped == ["sheep"] and octets.decode([*cut.ids, 1, 1]) == "red apple,"
    assert octets.encode("red apple", 2) == Encoding([0, 2], [], ["red", "apple"])
    assert octets.encode("red кот zoo zoo café").unknown == ["кот", "zoo"]


def test_bytes_travel_in_json(octets):
    text = octets.to_json()
    again = load_tokenizer(text)
    assert type(again) is ByteTokenizer and again.to_json() == text and len(again) == len(octets)
    assert again.encode(ENGLISH[0]) == octets.encode(ENGLISH[0])
    assert type(load_tokenizer(TOKENIZER.to_json())) is Tokenizer
    assert load_tokenizer(TOKENIZER.to_json()).to_json() == TOKENIZER.to_json()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, f: t.encode("red", 1), "au moins 2 jetons"),
        (lambda t, f: t.decode([len(t)]), "hors du vocabulaire"),
        (lambda t, f: load_tokenizer('{"bytes": 3}'), "illisible"),
        (lambda t, f: load_tokenizer("[]"), "illisible"),
        (lambda t, f: ByteTokenizer.from_files(f / "absent", f / "merges.txt"), "rien à cet endroit"),
        (
            lambda t, f: ByteTokenizer.from_files(f / "merges.txt", f / "merges.txt"),
            "ne font pas un vocabulaire",
        ),
    ],
)
def test_bytes_refuse_what_is_not_theirs(octets, published, call, message):
    with pytest.raises(MinidalleError, match=message):
        call(octets, published)


def test_a_vocabulary_with_holes_is_refused(octets):
    content = json.loads(octets.to_json())
    content["bytes"]["model"]["vocab"]["red_hole"] = len(octets) + 5
    with pytest.raises(MinidalleError, match="sans trou"):
        ByteTokenizer.from_json(json.dumps(content))
