"""La recherche en français : « autoencodeurs » trouve « auto-encodeur », et « decodeur », « décodeurs ».

Un mot composé est indexé avec et sans son trait d'union, et toute racine perd ses accents, dans l'index
comme dans la question. Tout se fait dans la page, sans serveur.
"""

import re
import unicodedata

from sphinx.application import Sphinx
from sphinx.search.fr import SearchFrench

HYPHENS = "-\u2010\u2011"
COMPOUND = re.compile(rf"\w+(?:[{HYPHENS}]\w+)*")
# Chargé dans la page après la racinisation de Sphinx, qu'il enveloppe ; les mêmes règles que ci-dessous.
JAVASCRIPT = r"""
var FrenchStems = Stemmer;
Stemmer = function () {
  const french = new FrenchStems();
  this.stemWord = (word) => foldAccents(french.stemWord(word.normalize("NFC")));
};
var foldAccents = (word) =>
  word.normalize("NFD").replace(/\p{Mark}/gu, "").replace(/œ/g, "oe").replace(/æ/g, "ae");
var splitQuery = (query) =>
  query.replace(/(?<=[\p{L}\p{N}_])[-\u2010\u2011](?=[\p{L}\p{N}_])/gu, "")
    .split(/[^\p{L}\p{M}\p{N}_]+/gu).filter((word) => word);
// Dans une page ouverte depuis un dossier, l'extrait de chaque résultat ne peut pas être lu : pas d'erreur.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
"""


def fold(word: str) -> str:
    """Mot sans accents ni ligatures."""
    letters = unicodedata.normalize("NFD", word)
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return bare.replace("œ", "oe").replace("æ", "ae")


class FoldedFrench(SearchFrench):
    js_splitter_code = JAVASCRIPT

    def split(self, text: str) -> list[str]:
        """Mots de `text` ; un mot composé donne ses parties, puis leur réunion."""
        words = []
        for compound in COMPOUND.findall(unicodedata.normalize("NFC", text)):
            parts = re.split(f"[{HYPHENS}]", compound)
            words += parts if len(parts) == 1 else [*parts, "".join(parts)]
        # La question peut venir sans accents : sa racine n'est pas toujours celle du mot accentué.
        bare = [fold(word) for word in words if word.lower() not in self.stopwords]
        return words + [word for word in bare if word not in words]

    def stem(self, word: str) -> str:
        return fold(super().stem(word))


def setup(app: Sphinx) -> dict:
    app.add_search_language(FoldedFrench)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
