"""Plusieurs processus : les nombres d'un seul, un seul qui écrit, un arrêt commun, une reprise exacte."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from minidalle.errors import MinidalleError
from minidalle.models.clip import CLIP, CLIPConfig
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.dalle_mini import DALLEMini, DALLEMiniConfig
from minidalle.processes import Alone, join
from minidalle.training import TrainingConfig, train

CONFIG = TrainingConfig(steps=4, batch_size=8, learning_rate=1e-2, warmup=1, log_every=1, save_every=1)
TINY = {"text_vocabulary": 9, "image_vocabulary": 7, "text_length": 3, "grid": (2, 2), "width": 8, "heads": 2}


class Normed(nn.Module):
    """Une convolution et une normalisation par lot, dont les moyennes portent sur tous les exemples."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(4, 1)

    def loss(self, x, y):
        return {
            "loss": (self.head(self.layers(x))[:, 0] - y).square().mean(),
            "level": x.mean(),
        }


class Noisy(Normed):
    """De plus, un abandon, et le hasard de chaque pas."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def loss(self, x, y):
        self.drawn.append(float(torch.rand(())))
        return super().loss(nn.functional.dropout(x, 0.2), y)


def pictures(rng, n):
    return torch.from_numpy(rng.normal(size=(n, 2, 2, 2))).float(), torch.from_numpy(
        rng.normal(size=n)
    ).float()


def tokens(rng, n):
    return torch.from_numpy(rng.integers(1, 9, (n, 3))), torch.from_numpy(rng.integers(7, size=(n, 4)))


def gapped(rng, n):
    """Des légendes de longueurs inégales : les deux moitiés du lot n'ont pas autant de mots."""
    text, image = tokens(rng, n)
    return text * (torch.arange(3) < torch.from_numpy(rng.integers(1, 4, (n, 1)))), image


def matched(rng, n):
    wrong = torch.from_numpy(rng.integers(1, 9, (4, 3)))
    return torch.from_numpy(rng.random((n, 3, 8, 8))).float(), tokens(rng, n)[0], wrong


def clip():
    sizes = {"image_width": 8, "image_heads": 2, "text_width": 8, "text_heads": 2, "dim": 8, "text_layers": 1}
    return CLIP(CLIPConfig(9, length=3, size=8, tower="resnet", channels=(4, 4), image_layers=1, **sizes))


CASES = {
    "normed": (Normed, pictures, {}),
    "dalle": (lambda: DALLE(DALLEConfig(**TINY, layers=1)), tokens, {"optimizer": "muon"}),
    "dalle-texte": (lambda: DALLE(DALLEConfig(**TINY, layers=1, text_weight=0.3)), gapped, {}),
    "dalle_mini": (lambda: DALLEMini(DALLEMiniConfig(**TINY, layers=1)), tokens, {"ema": 0.9}),
    "clip": (clip, matched, {}),
}


def learn(case, rank=0, out=None):
    """Entraîne un modèle ; partir de poids différents ne doit rien changer : ceux du premier servent à tous."""
    build, batches, options = CASES[case]
    torch.manual_seed(rank)
    model = build()
    result = train(model, batches, replace(CONFIG, **options), out, evaluate=lambda m: {"x": 1.0})
    return {"model": model.state_dict(), "history": json.dumps(result.history)}


# --- ce que fait chacun des deux processus --------------------------------------------------------


def work(folder, rank):
    torch.set_num_threads(1)
    # Né d'un lanceur en arrière-plan, un processus ignorerait Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = {case: learn(case, rank, folder / f"{case}-{rank}") for case in CASES}

    def impatient(rng, n):
        if rank and len(model.drawn) == 1:
            signal.raise_signal(signal.SIGINT)
        return pictures(rng, n)

    noise = replace(CONFIG, seed=3)
    torch.manual_seed(0)
    model = Noisy()
    train(model, pictures, noise)
    seen["whole"] = model.state_dict() | {"drawn": torch.tensor(model.drawn)}
    torch.manual_seed(0)
    model = Noisy()
    seen["stopped"] = train(model, impatient, noise, folder / "commun").steps
    drawn, model = model.drawn, Noisy()
    train(model, pictures, noise, folder / "commun", resume=True)
    seen["resumed"] = model.state_dict() | {"drawn": torch.tensor(drawn + model.drawn)}
    # Deux budgets, comme deux horloges qui ne diraient pas la même chose.
    seen["minutes"] = train(Normed(), pictures, replace(CONFIG, minutes=0.0005 * (1 + 20 * rank))).steps
    seen["kind"] = type(model.layers[1]).__name__
    try:
        train(Normed(), pictures, replace(CONFIG, batch_size=7))
    except MinidalleError as error:
        seen["error"] = str(error)
    torch.save(seen, folder / f"vu-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Ce qu'ont vu deux processus lancés comme par torchrun, et leur dossier."""
    folder = tmp_path_factory.mktemp("processus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": str(Path(__file__).parents[1]), "ACCELERATE_USE_CPU": "true"}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    return [torch.load(folder / f"vu-{rank}.pt", weights_only=True) for rank in range(2)], folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_numbers_of_one(seen, case):
    alone, team = learn(case), [one[case] for one in seen[0]]
    expected, found = (json.loads(part["history"]) for part in (alone, team[0]))
    assert len(expected) == len(found) == 4
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        assert b | {"seconds": 0} == pytest.approx(a | {"seconds": 0}, rel=1e-6, abs=1e-6)
    close = []
    for name, tensor in alone["model"].items():
        assert torch.equal(team[0]["model"][name], team[1]["model"][name]), name
        close.append(torch.isclose(team[0]["model"][name], tensor, rtol=1e-5, atol=1e-6).flatten())
    # Un gradient nul, arrondi autrement, suffit à AdamW pour faire un pas.
    assert torch.cat(close).float().mean() > 0.9


def test_only_the_first_writes_and_measures(seen):
    (_, other), folder = seen
    assert (folder / "dalle-0/resume.pt").is_file() and (folder / "dalle-0/metrics.csv").is_file()
    assert not (folder / "dalle-1").exists()
    assert not any("x" in row for row in json.loads(other["dalle"]["history"]))


def test_an_interrupt_of_one_stops_both_and_resuming_changes_nothing(seen):
    for one in seen[0]:
        assert one["stopped"] == 2
        assert one["whole"].keys() == one["resumed"].keys()
        assert all(torch.equal(one["whole"][name], one["resumed"][name]) for name in one["whole"])
    assert not (seen[0][0]["whole"]["drawn"] == seen[0][1]["whole"]["drawn"]).any()


def test_both_spend_the_same_minutes(seen):
    first, second = (one["minutes"] for one in seen[0])
    assert first == second >= 1


def test_the_model_is_given_back_as_it_was(seen):
    assert [one["kind"] for one in seen[0]] == ["BatchNorm2d"] * 2


def test_a_batch_that_cannot_be_shared_is_refused(seen):
    for one in seen[0]:
        assert one["error"].startswith("7 exemples ne se partagent pas entre 2 processus")


# --- un seul --------------------------------------------------------------------------------------


def test_alone_nothing_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)  # l'importer lèverait une erreur
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    team, batch = join(), (torch.zeros(3),)
    assert type(team) is Alone and team.first and team.count == 1 and team.share(batch) is batch
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(MinidalleError, match="pip install accelerate"):
        join()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
