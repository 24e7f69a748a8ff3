"""La demande en anglais, pour les modèles publiés, qui ne lisent que lui : mêmes mots, même ordre, un seul lexique."""

from collections.abc import Sequence

from minidalle.errors import MinidalleError
from minidalle.evaluation.phrases import Phrase, Wish, parse

NOUNS = {  # singulier, pluriel ; un losange serait une pierre précieuse si on le disait « diamond »
    "cercle": ("circle", "circles"),
    "carré": ("square", "squares"),
    "triangle": ("triangle", "triangles"),
    "étoile": ("star", "stars"),
    "croix": ("cross", "crosses"),
    "losange": ("rhombus", "rhombuses"),
    "cœur": ("heart", "hearts"),
    "anneau": ("ring", "rings"),
    "mouton": ("sheep", "sheep"),
    "chat": ("cat", "cats"),
    "chien": ("dog", "dogs"),
    "cochon": ("pig", "pigs"),
    "éléphant": ("elephant", "elephants"),
    "tortue": ("turtle", "turtles"),
    "poisson": ("fish", "fish"),
    "papillon": ("butterfly", "butterflies"),
    "pingouin": ("penguin", "penguins"),
    "escargot": ("snail", "snails"),
    "arbre": ("tree", "trees"),
    "sapin": ("fir tree", "fir trees"),
    "cactus": ("cactus", "cacti"),
    "fleur": ("flower", "flowers"),
    "champignon": ("mushroom", "mushrooms"),
    "pomme": ("apple", "apples"),
    "banane": ("banana", "bananas"),
    "carotte": ("carrot", "carrots"),
    "avocat": ("avocado", "avocados"),
    "maison": ("house", "houses"),
    "voiture": ("car", "cars"),
    "bateau": ("boat", "boats"),
    "fusée": ("rocket", "rockets"),
    "ballon": ("balloon", "balloons"),
}
COLOURS = {
    "rouge": "red",
    "orange": "orange",
    "jaune": "yellow",
    "vert": "green",
    "bleu": "blue",
    "violet": "purple",
    "rose": "pink",
    "noir": "black",
}
TEXTURES = {"rayé": "striped", "à pois": "polka-dot"}
SIZES = {"petit": "small", "grand": "big"}
BIGGER = {"petit": "smaller than", "grand": "bigger than"}
BACKGROUNDS = {"blanc": "white", "gris": "gray", "sable": "beige", "azur": "light blue"}
RELATIONS = {
    "gauche": "to the left of",
    "droite": "to the right of",
    "dessus": "above",
    "dessous": "below",
}
NUMERALS = {2: "two", 3: "three", 4: "four", 5: "five"}


def translate(text: str) -> str:
    """« un carré bleu à gauche d'un éléphant » → « a blue square to the left of an elephant ».

    Args:
        text: une phrase de l'étude, en français.

    Raises:
        MinidalleError: la phrase n'est pas d'une tournure de l'étude (`phrases.parse`).
    """
    phrase = parse(text)
    if phrase is None:
        raise MinidalleError(f"« {text} » n'est pas une demande de l'étude : voir --list.")
    return _said(phrase)


def _said(phrase: Phrase) -> str:
    texts = [_group(wish) for wish in phrase.wishes]
    if phrase.place:
        where = f"{RELATIONS[phrase.place]} {texts[1]}"
        text = f"{where}, {texts[0]}" if phrase.fronted else f"{texts[0]} {where}"
    elif phrase.comparison:
        text = f"{texts[0]} {BIGGER[phrase.comparison]} {texts[1]}"
    else:
        text = " and ".join(texts)
    return f"{text} on a {BACKGROUNDS[phrase.background]} background" if phrase.background else text


def _group(wish: Wish) -> str:
    """« two small red striped squares » ; l'adjectif anglais ne s'accorde pas, l'article si."""
    told = (SIZES.get(wish.size), COLOURS.get(wish.colour), TEXTURES.get(wish.texture))
    words = " ".join([*filter(None, told), NOUNS[wish.kind][wish.count > 1]])
    if wish.count > 1:
        return f"{NUMERALS[wish.count]} {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


class EnglishPainter:
    """Un peintre à qui l'on parle français, et qui ne lit que l'anglais."""

    def __init__(self, painter) -> None:
        """`painter` : voir `study.Painter` ; il a aussi `read`, comme `TextToImage`."""
        self._painter = painter

    def draw_many(self, prompts: Sequence[str], seeds: Sequence[int], **settings: object) -> list:
        return self._painter.draw_many([translate(prompt) for prompt in prompts], seeds, **settings)

    def read(self, prompts: Sequence[str]) -> tuple:
        return self._painter.read([translate(prompt) for prompt in prompts])
