"""Réglages communs à tous les tests."""

import os

# Avant le premier « import torch » : sur deux cœurs, chaque test va plus vite avec un fil qui sait dormir.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TQDM_DISABLE", "1")

from hypothesis import settings

# Pas de délai : une machine occupée ne doit pas faire échouer un test. Mêmes exemples à chaque fois.
settings.register_profile("livre", deadline=None, derandomize=True)
settings.load_profile("livre")
