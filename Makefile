# Les commandes du projet : « make » les liste.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Un fil par processus, qui dort quand il attend : sur deux cœurs, tout le reste est plus lent.
# Sans barres de progression, une sortie de cellule ne dépend pas de la machine.
book test notebooks pdf links mutants: export OMP_NUM_THREADS = 1
book test notebooks pdf links mutants: export TQDM_DISABLE = 1
export OMP_WAIT_POLICY = passive
export JUPYTER_PREFER_ENV_PATH = 1
export PYTHONUTF8 = 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install book test notebooks pdf links lint format weights mutants clean

help: ## affiche cette liste
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## installe les paquets et minidalle dans .venv (environ 6 Go)
	@echo "minidalle est installé : $(BIN)/minidalle --help"

$(INSTALLED): requirements.txt requirements-pairs.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Il faut Python 3.11 ou plus récent : make $(or $(MAKECMDGOALS),install) PYTHON=/chemin/vers/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Il manque le module venv de Python : sudo apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r requirements-pairs.txt
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@touch $@

book: $(INSTALLED) ## exécute les chapitres et construit _build/html/index.html
	@$(BIN)/python -m tools.book html

test: $(INSTALLED) ## vérifie tout : style, bibliothèque, livre construit, sorties reproductibles
	@$(BIN)/python -m tools.check

notebooks: $(INSTALLED) ## convertit les chapitres en carnets dans _build/notebooks
	@$(BIN)/python -m tools.book notebooks

pdf: $(INSTALLED) ## construit le PDF par xelatex (paquets du système requis)
	@$(BIN)/python -m tools.book pdf

links: $(INSTALLED) ## suit chaque lien du livre vers le dehors (réseau requis)
	@$(BIN)/python -m tools.book links

lint: $(INSTALLED) ## vérifie le style du code et de la prose
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m tools.prose
	@$(BIN)/python -m tools.spelling

format: $(INSTALLED) ## met le code en forme
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

weights: $(INSTALLED) ## réentraîne les poids de référence (des heures, reprend où il s'est arrêté)
	@$(BIN)/python tools/weights.py

mutants: $(INSTALLED) ## vérifie que les tests voient chaque faute de tests/mutants
	@$(BIN)/python tools/mutants.py

clean: ## efface ce qui est construit, garde .venv
	rm -rf _build .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
