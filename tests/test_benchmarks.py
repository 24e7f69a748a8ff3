"""Le banc d'essai, avec une fausse horloge : ce qui est mesuré, dans quel ordre, et ce que dit le rapport."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
harness = importlib.import_module("harness")
sys.path.pop(0)

KEYS = ["name", "ours", "peer", "peer_name", "unit", "ratio", "threads"]


class Clock:
    """Une horloge que seuls les appels mesurés font avancer."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def worker(self, name, seconds):
        """Un appel qui dure `seconds`."""

        def call():
            self.calls.append(name)
            self.now += seconds

        return call


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Note les nombres de fils demandés, sans toucher à torch ; rien à ramasser ici."""
    asked = []
    monkeypatch.setattr(harness.gc, "collect", lambda: 0)
    monkeypatch.setattr(harness, "set_threads", asked.append)
    return asked


def compared(unit, ours=1.0, peer=2.0, work=10, **settings):
    clock = Clock()
    run = harness.Run(clock=clock, **settings)
    result = run.compare(
        "essai",
        ours=clock.worker("nous", ours),
        peer=clock.worker("pair", peer),
        peer_name="pair",
        unit=unit,
        work=work,
    )
    return result, clock


@pytest.mark.parametrize(
    ("unit", "ours", "peer"), [("images/s", 10, 5), ("s", 1, 2), ("ms", 1e3, 2e3), ("µs", 1e6, 2e6)]
)
def test_ratio_above_one_means_ours_is_ahead(unit, ours, peer):
    result, _ = compared(unit)
    assert (result.ours.median, result.peer.median) == (pytest.approx(ours), pytest.approx(peer))
    assert result.ratio == pytest.approx(2)
    slower, _ = compared(unit, ours=2.0, peer=1.0)
    assert slower.ratio == pytest.approx(0.5)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.sampled_from(["images/s", "ms"]))
def test_ratio_is_the_ratio_of_times_whatever_the_unit(ours, peer, unit):
    result, _ = compared(unit, ours, peer)
    assert result.ratio == pytest.approx(peer / ours)


def test_scores_and_memory_have_their_direction():
    run = harness.Run()
    assert run.record("oracle", [90.0], [45.0], "pair", "%").ratio == 2
    assert run.record("x-memory", [10.0], [20.0], "pair", "Mio").ratio == 2
    with pytest.raises(ValueError, match="pommes"):
        _ = run.record("x", [1.0], [1.0], "pair", "pommes").ratio
    with pytest.raises(ValueError, match="chronomètre"):
        compared("%")


@pytest.mark.parametrize(("quick", "repeats"), [(False, 7), (True, 3)])
def test_warmed_up_then_alternating(quick, repeats):
    result, clock = compared("s", quick=quick)
    assert clock.calls[:4] == ["nous", "nous", "pair", "pair"]
    measured = clock.calls[4:]
    assert measured == (["nous", "pair", "pair", "nous"] * repeats)[: 2 * repeats]
    assert len(result.ours.values) == len(result.peer.values) == repeats


def test_short_calls_are_chained_and_counted_once():
    result, clock = compared("s", ours=0.01, peer=1.0)
    assert clock.calls.count("nous") == 2 + 7 * 20  # 0,2 s par mesure
    assert clock.calls.count("pair") == 2 + 7
    assert result.ours.median == pytest.approx(0.01)


def test_median_and_interquartile_range():
    sample = harness.Sample((1.0, 2.0, 3.0, 4.0, 100.0))
    assert (sample.median, sample.spread) == (3.0, 2.0)
    assert harness.Sample((5.0,)).spread == 0


def fake_bench():
    """Une ligne qui bavarde, une dont le pair manque, une qui n'a de sens qu'à un fil."""
    bench = harness.Bench("Essai.")

    def compare(run, name):
        run.clock = clock = Clock()
        calls = {"ours": clock.worker("nous", 1.0), "peer": clock.worker("pair", 3.0)}
        run.compare(name, **calls, peer_name="le pair", unit="scènes/s", work=6)

    @bench.row("bavarde")
    def _(run):
        print("un pair écrit sur la sortie")
        compare(run, "bavarde")

    @bench.row("orpheline")
    def _(run):
        run.peer("un_pair_absent")
        raise AssertionError("la ligne devait être sautée")

    @bench.row("seule", threads=(1,))
    def _(run):
        compare(run, "seule")

    return bench


def test_json_is_one_line_per_comparison_and_nothing_else(capsys, threads):
    assert fake_bench().main(["--json", "--quick"]) == 0
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [list(row) for row in rows] == [KEYS] * 3
    assert [(row["name"], row["threads"]) for row in rows] == [("bavarde", 1), ("bavarde", 2), ("seule", 1)]
    values = {"ours": 6.0, "peer": 2.0, "peer_name": "le pair", "unit": "scènes/s", "ratio": 3.0}
    assert rows[0] == {"name": "bavarde", "threads": 1} | values
    assert "un pair écrit" in output.err
    assert threads == [1, 2, 1, 1]


def test_missing_peer_is_skipped_with_a_french_sentence(capsys):
    assert fake_bench().main(["orpheline", "--threads", "1"]) == 0
    output = capsys.readouterr()
    assert "Ligne « orpheline » sautée : un-pair-absent manque" in output.err
    assert "pip install -e .[bench]" in output.err
    assert output.out.strip() == "Rien n'a été mesuré."


def test_table_shows_spread_and_filter_keeps_the_row(capsys):
    assert fake_bench().main(["seule"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["comparaison", "fils", "unité", "nous", "pair", "rapport", "qui"]
    assert lines[1].split("  ")[0] == "seule" and "6,00 ± 0" in lines[1] and "3,00" in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize("arguments", [["inconnue"], ["--threads", "0"]])
def test_bad_request(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        fake_bench().main(arguments)
    assert error.value.code == 2
    assert "inconnue" in capsys.readouterr().err or "--threads" in arguments


def test_memory_adds_a_row(monkeypatch):
    monkeypatch.setattr(harness, "peak_memory", lambda call: call() or 8.0)
    clock = Clock()
    run = harness.Run(memory=True, quick=True, clock=clock)
    run.compare("essai", ours=clock.worker("a", 1.0), peer=clock.worker("b", 1.0), peer_name="b", unit="s")
    assert [(r.name, r.unit, r.ratio) for r in run.results] == [
        ("essai", "s", 1.0),
        ("essai-memory", "Mio", 1.0),
    ]


def test_peak_memory_sees_what_a_call_adds():
    size = 64
    peak = harness.peak_memory(lambda: bytearray(size << 20))
    if peak is None:
        pytest.skip("le noyau ne donne pas le sommet de mémoire")
    assert size - 4 < peak < 2 * size
    assert harness.peak_memory(lambda: None) < 4, "l'appel précédent ne doit pas compter"

    kept = []  # un bloc gardé en haut du tas : malloc ne rend pas de lui-même ce qui est dessous
    peaks = [
        harness.peak_memory(lambda: kept.append([bytes(4000) for _ in range(size * 256)][-1])) for _ in "12"
    ]
    assert min(peaks) > size - 4, "le second appel ne doit pas profiter de la mémoire du premier"


@given(st.floats(1e-6, 1e9))
def test_numbers_are_read_in_french(value):
    shown = harness.text(value)
    assert "e" not in shown and "." not in shown
    assert float(shown.replace(",", ".")) == pytest.approx(value, rel=5.1e-3)
