"""La boucle d'entraînement : elle apprend, se souvient, et reprend bit pour bit."""

import csv
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from minidalle.errors import MinidalleError
from minidalle.training import TrainingConfig, train

CONFIG = TrainingConfig(
    steps=40, batch_size=8, learning_rate=0.05, warmup=3, log_every=4, save_every=4, seed=5
)


class Line(nn.Module):
    """y = a·x + b avec un abandon : un modèle qui consomme du hasard, comme les vrais."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def loss(self, x, y):
        self.seen += len(x)
        dropped = nn.functional.dropout(x, 0.1, self.training)
        loss = (self.layer(dropped)[:, 0] - y).square().mean()
        return {"loss": loss, "bias": self.layer.bias.detach()[0]}


def batches(rng, n):
    x = rng.normal(size=(n, 4)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(x.sum(1) + 1)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_it_learns_and_keeps_a_history(tmp_path):
    model = Line()
    result = train(model, batches, replace(CONFIG, steps=200), tmp_path, evaluate=lambda m: {"essai": 7.0})
    assert result.finished and result.steps == 200 and not model.training
    steps, losses = result.curve("loss")
    assert steps[-1] == 200 and losses[-1] < 0.3 * losses[0]
    assert result.curve("essai") == ([200], [7.0])
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == steps
    assert float(rows[-1]["loss"]) == losses[-1]


def test_same_seed_same_weights_whatever_the_caller_did():
    a, b, c = Line(), Line(), Line()
    train(a, batches, CONFIG)
    torch.manual_seed(999)
    np.random.default_rng(1).random()
    train(b, batches, CONFIG)
    train(c, batches, replace(CONFIG, seed=6))
    assert same(weights(a), weights(b)) and not same(weights(a), weights(c))


def test_the_callers_randomness_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    model = Line()
    torch.manual_seed(3)
    train(model, batches, CONFIG)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("moment", ["lot", "perte", "mesure"])
@pytest.mark.parametrize("stop", [1, 7, 22])
def test_interrupt_then_resume_changes_nothing(tmp_path, stop, moment, ema):
    """Ctrl-C au milieu d'un pas ou d'une évaluation : le pas se termine, puis l'état est rangé."""
    config = replace(CONFIG, steps=42, ema=ema, evaluate_every=1)
    whole, cut, calls = Line(), Line(), {"lot": 0, "perte": 0, "mesure": 0}

    def strike(where):
        calls[where] += 1
        if where == moment and calls[where] == stop:
            signal.raise_signal(signal.SIGINT)

    def impatient(rng, n):
        batch = batches(rng, n)
        strike("lot")
        return batch

    def measured(model):
        strike("mesure")
        return {"x": float(model.layer.bias)}

    class Impatient(Line):
        def loss(self, x, y):
            strike("perte")
            return super().loss(x, y)

    expected = train(whole, batches, config, evaluate=lambda m: {"x": float(m.layer.bias)})
    result = train(Impatient(), impatient, config, tmp_path, evaluate=measured)
    assert not result.finished and result.steps == stop
    moment = None
    result = train(cut, batches, config, tmp_path, resume=True, evaluate=measured)
    assert same(weights(whole), weights(cut)) and result.finished
    keep = ("step", "loss", "bias", "x")
    assert [[r[k] for k in keep] for r in result.history] == [[r[k] for k in keep] for r in expected.history]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_stops_at_once(tmp_path):
    def furious(rng, n):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Line(), furious, CONFIG, tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resume_after_the_end_does_nothing(tmp_path):
    a, b = Line(), Line()
    train(a, batches, CONFIG, tmp_path)
    result = train(b, batches, CONFIG, tmp_path, resume=True)
    assert result.finished and result.steps == CONFIG.steps and same(weights(a), weights(b))


def test_a_longer_budget_goes_on(tmp_path):
    train(Line(), batches, CONFIG, tmp_path)
    result = train(Line(), batches, replace(CONFIG, steps=60), tmp_path, resume=True)
    assert result.steps == 60 and [r["step"] for r in result.history][-1] == 60


SCRIPT = """
import sys, json, torch
sys.path.insert(0, sys.argv[2])
from test_training import CONFIG, Line, batches
from minidalle.training import train
from dataclasses import replace
from pathlib import Path
import time
torch.set_num_threads(1)
def slow(rng, n):
    time.sleep(0.01)
    return batches(rng, n)
out = Path(sys.argv[1])
model = Line()
train(model, slow, replace(CONFIG, steps=120, save_every=3, ema=0.9), out, resume=(out / "resume.pt").exists())
torch.save(model.state_dict(), out / "final.pt")
"""


def test_killed_at_random_moments_the_end_is_the_same_bit_for_bit(tmp_path):
    """SIGKILL ne laisse rien nettoyer : l'entraînement reprend du dernier point écrit en entier."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    out = tmp_path / "run"
    command = [sys.executable, str(script), str(out), str(Path(__file__).parent)]
    reference = Line()
    train(reference, batches, replace(CONFIG, steps=120, save_every=3, ema=0.9))
    moments, kills = random.Random(0), 0
    for _ in range(12):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        if kills < 3:
            # Attendre qu'il travaille (le premier point de reprise), puis frapper n'importe quand.
            limit = time.monotonic() + 60
            before = (out / "resume.pt").stat().st_mtime_ns if (out / "resume.pt").exists() else 0
            while time.monotonic() < limit and process.poll() is None:
                if (out / "resume.pt").exists() and (out / "resume.pt").stat().st_mtime_ns != before:
                    break
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
            continue
        assert process.returncode == 0, errors
        break
    assert kills == 3
    final = torch.load(out / "final.pt", weights_only=True)
    assert same(weights(reference), final)


def test_average_weights_are_those_returned_and_evaluated():
    seen = []
    model = Line()
    config = replace(CONFIG, ema=0.99, evaluate_every=40)
    train(model, batches, config, evaluate=lambda m: seen.append(weights(m)) or {"x": 0.0})
    assert same(seen[-1], weights(model))
    plain = Line()
    train(plain, batches, replace(CONFIG, ema=0.0))
    assert not torch.equal(plain.layer.weight, model.layer.weight)
    assert model.seen == plain.seen == 40 * 8


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_evaluation_does_not_disturb_training(ema):
    a, b = Line(), Line()

    def noisy(model):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(100)
        return {"x": 0.0}

    train(a, batches, replace(CONFIG, evaluate_every=5, ema=ema), evaluate=noisy)
    train(b, batches, replace(CONFIG, evaluate_every=5, ema=ema))
    assert same(weights(a), weights(b))


def test_rate_rises_then_falls_to_its_floor():
    config = TrainingConfig(steps=100, learning_rate=1.0, warmup=9, floor=0.1)
    rates = [config.rate(step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, abs=0.01) and max(rates) == max(rates[8:12])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_gradients_are_clipped():
    model = Line()
    big = lambda rng, n: tuple(100 * part for part in batches(rng, n))  # noqa: E731
    train(model, big, replace(CONFIG, steps=1, clip=0.5))
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm == pytest.approx(0.5, abs=1e-3)


def test_each_player_is_clipped_alone():
    class Duel(nn.Module):
        def __init__(self):
            super().__init__()
            self.calm, self.wild = (nn.Parameter(torch.zeros(4)) for _ in range(2))
            self.seen = []

        def players(self):
            return [[self.calm], [self.wild]]

        def loss(self, x, y):
            if self.calm.grad is not None:
                self.seen.append((self.calm.grad.norm().item(), self.wild.grad.norm().item()))
            return {"loss": 0.1 * self.calm.sum() + 1e4 * self.wild.sum()}

    model = Duel()
    train(model, batches, replace(CONFIG, steps=3, clip=0.5))
    assert model.seen == [(pytest.approx(0.2), pytest.approx(0.5))] * 2


def test_betas_are_those_of_the_optimiser(monkeypatch):
    seen = []

    class Spy(torch.optim.AdamW):
        def __init__(self, groups, **options):
            seen.append(options["betas"])
            super().__init__(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    train(Line(), batches, replace(CONFIG, steps=1, betas=[0.5, 0.9]))
    assert seen == [(0.5, 0.9)]


class Blocks(nn.Module):
    """Un plongement, deux blocs, une tête : ce que « muon » doit distinguer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.head = nn.Linear(6, 1)

    def loss(self, x, y):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return {"loss": (self.head(x)[:, 0] - y).square().mean()}


MUON = replace(CONFIG, optimizer="muon", learning_rate=0.02)


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(monkeypatch):
    seen = {}
    for name in ("AdamW", "Muon"):

        class Spy(getattr(torch.optim, name)):
            def __init__(self, groups, name=name, **options):
                super().__init__(groups, **options)
                seen[name] = [id(p) for group in self.param_groups for p in group["params"]]

        monkeypatch.setattr(torch.optim, name, Spy)
    model = Blocks()
    result = train(model, batches, replace(MUON, steps=150))
    assert seen["Muon"] == [id(block.weight) for block in model.blocks]
    assert sorted(seen["AdamW"] + seen["Muon"]) == sorted(map(id, model.parameters()))
    losses = result.curve("loss")[1]
    assert losses[-1] < 0.2 * losses[0]


def test_every_optimiser_follows_the_rate():
    """À taux presque nul, rien ne bouge."""
    model, start = Blocks(), weights(Blocks())
    train(model, batches, replace(MUON, steps=2, warmup=10**9, weight_decay=0))
    assert all(torch.allclose(start[name], p, atol=1e-6) for name, p in weights(model).items())


def test_interrupted_muon_resumes_bit_for_bit(tmp_path):
    whole, cut, calls = Blocks(), Blocks(), iter(range(100))

    def impatient(rng, n):
        if next(calls) == 17:
            signal.raise_signal(signal.SIGINT)
        return batches(rng, n)

    train(whole, batches, MUON)
    assert not train(Blocks(), impatient, MUON, tmp_path).finished
    assert train(cut, batches, MUON, tmp_path, resume=True).finished
    assert same(weights(whole), weights(cut))
    with pytest.raises(MinidalleError, match="« optimizer » valait muon, pas adamw"):
        train(Blocks(), batches, replace(MUON, optimizer="adamw"), tmp_path, resume=True)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="pas de compilateur C++")
@pytest.mark.filterwarnings("ignore")  # celles du compilateur
def test_compiled_or_not_the_numbers_are_the_same(tmp_path, monkeypatch):
    # Ce que torch a compilé et gardé pour un autre processeur rendrait des nombres faux.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, compiled = (
        train(Blocks(), batches, replace(CONFIG, steps=3, log_every=1, compiled=choice)).curve("loss")[1]
        for choice in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_compiling_is_asked_for_and_may_change_at_resumption(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda loss: asked.append(loss) or loss)
    monkeypatch.setattr("minidalle.training.shutil.which", str)
    train(Line(), batches, CONFIG, tmp_path)
    assert not asked
    train(Line(), batches, replace(CONFIG, compiled=True), tmp_path, resume=True)
    assert len(asked) == 1
    monkeypatch.setattr("minidalle.training.shutil.which", lambda name: None)
    with pytest.raises(MinidalleError, match=r"g\+\+.*--no-compiled"):
        train(Line(), batches, replace(CONFIG, compiled=True))


def test_matrices_decay_and_biases_do_not():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.full((2, 2), 5.0))
            self.bias = nn.Parameter(torch.full((2,), 5.0))

        def loss(self, x):
            return {"loss": 0 * (self.matrix.sum() + self.bias.sum() + x.sum())}

    model = Flat()
    train(model, lambda rng, n: (torch.zeros(n),), replace(CONFIG, weight_decay=0.5))
    assert (model.matrix < 4.9).all() and (model.bias == 5).all()


class Clock:
    """Une horloge qui avance d'une seconde chaque fois qu'on la lit."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def test_minutes_stop_the_run_with_everything_written(tmp_path, monkeypatch):
    monkeypatch.setattr("minidalle.training.time.monotonic", Clock())
    config = replace(CONFIG, minutes=1, log_every=7, save_every=7)
    result = train(Line(), batches, config, tmp_path, evaluate=lambda m: {"x": 1.0})
    assert result.finished and 5 < result.steps < 60
    assert result.history[-1]["step"] == result.steps and result.history[-1]["x"] == 1
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert json.loads(state["result"])["steps"] == result.steps
    # Le temps passé compte encore après une reprise : il ne reste rien à faire.
    again = train(Line(), batches, config, tmp_path, resume=True)
    assert again.steps == result.steps


def test_evaluations_keep_their_own_period():
    result = train(Line(), batches, replace(CONFIG, evaluate_every=5), evaluate=lambda m: {"x": 0.0})
    assert result.curve("x")[0] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert set(range(4, 41, 4)) <= set(result.curve("loss")[0])


def test_mixed_precision_is_used():
    seen = []

    class Spy(Line):
        def loss(self, x, y):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().loss(x, y)

    for precision in ("float32", "bfloat16"):
        train(Spy(), batches, replace(CONFIG, steps=1, precision=precision))
    assert seen == [False, True]


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(MinidalleError, match="Rien à reprendre"):
        train(Line(), batches, CONFIG, tmp_path, resume=True)
    train(Line(), batches, CONFIG, tmp_path)
    with pytest.raises(MinidalleError, match="contient déjà un entraînement"):
        train(Line(), batches, CONFIG, tmp_path)
    with pytest.raises(MinidalleError, match="« batch_size » valait 8, pas 9"):
        train(Line(), batches, replace(CONFIG, batch_size=9), tmp_path, resume=True)
    with pytest.raises(MinidalleError, match="illisible ou d'un autre modèle"):
        model = nn.Linear(1, 1)
        train(model, batches, CONFIG, tmp_path, resume=True)
    with pytest.raises(MinidalleError, match="n'est plus un nombre au pas 1"):
        train(Line(), lambda rng, n: (torch.full((n, 4), float("inf")), torch.zeros(n)), CONFIG)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"minutes": -1},
        {"learning_rate": 0},
        {"ema": 1},
        {"precision": "float8"},
        {"optimizer": "sgd"},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(MinidalleError):
        TrainingConfig(**options)


def test_the_checkpoint_is_plain_data(tmp_path):
    train(Line(), batches, CONFIG, tmp_path)
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert json.loads(state["config"])["seed"] == 5
