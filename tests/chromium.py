"""Ce que partagent les tests qui ouvrent une page dans Chromium, sans écran."""

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 300_000  # en millisecondes : une machine occupée n'est pas une panne
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
