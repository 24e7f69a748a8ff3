"""minidalle : les modèles du livre « Dessine-moi un mouton à gauche d'un carré bleu ».

Importer `minidalle` ne charge pas PyTorch : chaque module charge ce dont il a besoin.
"""

import os

# Sans cela, deux fils qui attendent en boucle active ralentissent tout d'un facteur dix sur deux cœurs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
