"""`minidalle generate` : dessiner une description, ou toutes celles d'un fichier."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from minidalle.cli_common import (
    Guidance,
    Number,
    Seed,
    Temperature,
    TopP,
    Zoom,
    enlarge,
    few,
    file_path,
    grid,
    model_name,
    png_path,
    positive,
    save_png,
    slug,
)
from minidalle.errors import MinidalleError
from minidalle.files import atomic_write
from minidalle.typer_fr import number, progress_bar, quoted

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    from minidalle.evaluation.judges import Judge
    from minidalle.generation import Drawing, TextToImage

_WORKSPACE = 60_000_000  # octets que PyTorch et l'écriture des images prennent à côté (mesuré)
EPILOG = (
    'Exemples : minidalle generate "trois pommes au-dessus d\'une maison" -n 9 --seed 4 -o pommes.png\n'
    '           minidalle generate "un mouton bleu" --rerank 8 --film mouton.gif\n'
    "           minidalle generate --prompts descriptions.txt -o dessins"
)


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="DESCRIPTION", help="Ce qu'il faut dessiner, en français ; ou --prompts."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FICHIER|DOSSIER",
            show_default="un nom tiré de la description",
            help="Image à écrire, ou dossier où écrire une image par graine.",
        ),
    ] = None,
    n: Number = 1,
    seed: Seed = 0,
    model: Annotated[
        str,
        typer.Option("--model", metavar="CHEMIN|NOM", help="Poids : un fichier, un dossier, un nom livré."),
    ] = "scenes",
    temperature: Temperature = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", metavar="K", help="Ne tirer que parmi les K jetons les plus probables."),
    ] = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    rerank: Annotated[
        int | None,
        typer.Option(
            "--rerank",
            metavar="N",
            callback=few,
            help="Tirer N images, et garder les -n que le CLIP du livre accorde le mieux à la description.",
        ),
    ] = None,
    complete: Annotated[
        Path | None,
        typer.Option(
            "--complete", metavar="IMAGE", help="Garder le haut de cette image, et dessiner le bas."
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep", metavar="PART", show_default="0.5", help="Part de l'image que --complete garde."
        ),
    ] = None,
    film: Annotated[
        str | None,
        typer.Option("--film", metavar="FICHIER.gif", help="Écrire aussi le film du dessin, jeton à jeton."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FICHIER",
            help="Dessiner chaque ligne de ce fichier, ou de l'entrée si c'est « - », dans le dossier -o. "
            "Relancée, la commande ne refait pas les images déjà là.",
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            metavar="MO",
            callback=positive,
            help="Mémoire à ne pas dépasser, en mégaoctets : moins d'images sont dessinées à la fois.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Décrire en JSON, sur la sortie : réglages, graines, jetons, scores."),
    ] = False,
    zoom: Zoom = 4,
) -> None:
    """Dessiner une description.

    Plusieurs images forment une grille, ou autant de fichiers si la sortie est un dossier. La même graine
    redonne le même fichier, octet pour octet ; l'image i d'une série a la graine de la première plus i.
    """
    from minidalle.checkpoints import find_weights
    from minidalle.generation import TextToImage
    from minidalle.sampling import check_guidance, check_sampling

    if (prompt is None) == (prompts is None):
        raise MinidalleError(
            "il manque « DESCRIPTION », ou --prompts FICHIER : voir « minidalle generate --help »."
            if prompt is None
            else "Une description et --prompts à la fois : choisir."
        )
    if output == "":
        raise MinidalleError("Nom de sortie vide : donner un fichier .png ou un dossier après -o.")
    if rerank is not None and rerank < n:
        raise MinidalleError(
            f"--rerank {rerank} ne suffit pas pour garder {n} images : tirer au moins -n images."
        )
    if keep is not None and complete is None:
        raise MinidalleError("L'option --keep ne va qu'avec --complete IMAGE : donner l'image à compléter.")
    if film is not None and prompts is not None:
        raise MinidalleError(
            "L'option --film ne filme qu'une description : la retirer, ou retirer --prompts."
        )
    check_sampling(temperature, top_k, top_p)
    if guidance is not None:
        check_guidance(guidance)
    movie = None if film is None else file_path(film, ".gif")
    # Noms et descriptions d'abord : une faute se dit avant de charger quoi que ce soit.
    lines = None if prompts is None else _read_prompts(prompts)
    if prompt is not None:
        prompt = prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        target = _target(output, prompt, seed, n, rerank)

    weights = find_weights(model)
    painter = TextToImage.load(weights)
    guidance = painter.guidance if guidance is None else guidance
    settings = {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p}
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    if guidance != 1:
        settings["--guidance"] = guidance
    if rerank is not None:
        settings |= {"--rerank": rerank, "-n": n, "--seed": seed}
    if complete is not None:
        options |= {"complete": _load_image(complete, painter), "keep": 0.5 if keep is None else keep}
        digest = hashlib.sha256(options["complete"].tobytes()).hexdigest()
        settings |= {"--complete": f"{complete.name} {digest[:12]}", "--keep": options["keep"]}
    settings["--zoom"] = zoom
    judge = None if rerank is None else _judge()
    options["batch"] = _batch(painter, guidance, memory)
    fingerprint = hashlib.sha256(weights.read_bytes()).hexdigest()
    settings = {name: value for name, value in settings.items() if value is not None}
    texts = {
        "Modele": f"{model_name(weights)} {fingerprint[:12]}",
        "Reglages": " ".join(f"{name} {value}" for name, value in settings.items()),
    }
    job = _Job(painter, judge, options, n, rerank or n, seed, zoom, texts, as_json)
    if lines is not None:
        _draw_file(job, lines, Path(output or ("images" if prompts == "-" else Path(prompts).stem)))
        return
    with progress_bar("jetons", job.tokens(1)) as bar:
        (drawing,) = job.draw([prompt], bar)
    _warn(drawing)
    files = [*_write(job, drawing, target), *([movie] if movie else [])]
    if movie:
        _write_film(movie, painter, drawing, zoom)
    _tell(job, drawing, files)


class _Job(NamedTuple):
    """Ce qu'il faut pour dessiner une description, et l'écrire."""

    painter: "TextToImage"
    judge: "Judge | None"
    options: dict
    kept: int  # images gardées par description
    drawn: int  # images tirées par description
    seed: int
    zoom: int
    texts: dict[str, str]  # à ranger dans chaque PNG
    as_json: bool

    def tokens(self, prompts: int) -> int:
        """Nombre de jetons à tirer pour autant de descriptions."""
        return prompts * self.drawn * self.painter.transformer.config.image_length

    def draw(self, prompts: Sequence[str], bar: "tqdm") -> "list[Drawing]":
        from minidalle.generation import rerank

        drawings = self.painter.draw_many(
            prompts,
            [self.seed] * len(prompts),
            self.drawn,
            progress=lambda _, tokens: bar.update(len(tokens)),
            **self.options,
        )
        return [rerank(drawing, self.judge, self.kept) if self.judge else drawing for drawing in drawings]


# --- ce qu'il faut avant de dessiner --------------------------------------------------------------


class _Target(NamedTuple):
    """Où écrire : un fichier, ou un dossier et le début des noms de fichiers."""

    path: Path
    title: str = ""


def _target(output: str | None, prompt: str, seed: int, n: int, rerank: int | None) -> _Target:
    title, last = slug(prompt), seed + (rerank or n) - 1
    if output is not None and (Path(output).is_dir() or not Path(output).suffix or output.endswith(os.sep)):
        return _Target(Path(output), title)
    name = f"{title}-{seed}" + (f"-{last}" if last > seed else "") + ("-choix" if rerank else "")
    return _Target(png_path(output, name))


def _read_prompts(name: str) -> dict[str, int]:
    """Descriptions d'un fichier, chacune une fois, et leur ligne."""
    data = typer.get_binary_stream("stdin").read() if name == "-" else Path(name).read_bytes()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MinidalleError(f"« {name} » n'est pas en UTF-8 : l'enregistrer dans ce codage.") from error
    found: dict[str, int] = {}
    for i, line in enumerate(lines, 1):
        if line.strip():
            found.setdefault(line.strip(), i)
    if not found:
        raise MinidalleError(f"« {name} » ne contient aucune description : en écrire une par ligne.")
    return found


def _load_image(path: Path, painter: "TextToImage") -> "np.ndarray":
    from minidalle.data.captioned import load_image

    return load_image(path, painter.size[0])


def _judge() -> "Judge":
    from minidalle.evaluation.judges import load_judge

    return load_judge("clip")


def _batch(painter: "TextToImage", guidance: float, memory: float | None) -> int:
    """Images à dessiner à la fois, pour tenir dans `memory` Mo.

    S'ajoutent à ce qui est déjà occupé `row_bytes` par image, et de quoi calculer (`_WORKSPACE`).
    """
    from minidalle.generation import BATCH

    if memory is None:
        return BATCH
    used, row = _resident() + _WORKSPACE, painter.row_bytes(guidance)
    batch = int((memory * 1e6 - used) // row)
    if batch < 1:
        least = int((used + row) / 1e6) + 1
        raise MinidalleError(f"--memory {number(memory)} ne suffit pas : ce modèle veut {least} Mo au moins.")
    return min(batch, BATCH)


def _resident() -> int:
    """Mémoire occupée par ce processus, en octets ; 0 si le système ne le dit pas."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- un fichier de descriptions -------------------------------------------------------------------


def _draw_file(job: _Job, lines: dict[str, int], folder: Path) -> None:
    """Dessine dans `folder` chaque description qui n'y est pas déjà.

    Un nom de fichier dit la description, en clair et par son empreinte, et la graine : deux processus du même
    dossier n'écrivent un même fichier que s'il a le même contenu.
    """
    for prompt, line in lines.items():
        try:
            job.painter.read([prompt])
        except MinidalleError as error:
            raise MinidalleError(f"Ligne {line} : {error}") from error
    left = []
    for prompt in lines:
        target = _Target(folder, f"{slug(prompt)}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}")
        done = _already(job, prompt, target)
        if not done:
            left.append((prompt, target))
        elif job.as_json:
            typer.echo(json.dumps({"prompt": prompt, "files": [str(p) for p in done]}, ensure_ascii=False))
    if len(left) < len(lines):
        typer.echo(f"Déjà dessinées : {number(len(lines) - len(left))} sur {number(len(lines))}.", err=True)
    group = max(1, job.options["batch"] // job.drawn)
    with progress_bar("jetons", job.tokens(len(left))) as bar:
        for i in range(0, len(left), group):
            part = left[i : i + group]
            for drawing, (prompt, target) in zip(job.draw([p for p, _ in part], bar), part, strict=True):
                _warn(drawing, f"ligne {lines[prompt]}, ")
                _tell(job, drawing, list(_write(job, drawing, target)))


def _already(job: _Job, prompt: str, target: _Target) -> list[Path]:
    """Fichiers d'une description déjà dessinée, entière, intacte et avec les mêmes réglages ; sinon rien."""
    if job.judge:
        # Quelles graines seront gardées ne se sait qu'après : les réglages des fichiers disent le reste.
        paths = sorted(target.path.glob(f"{target.title}-*.png"))
    else:
        paths = [target.path / f"{target.title}-{job.seed + i}.png" for i in range(job.kept)]
    intact = [path for path in paths if _intact(path, job.texts | {"Description": prompt})]
    return intact if len(intact) == job.kept else []


def _intact(path: Path, texts: dict[str, str]) -> bool:
    """Vrai si ce PNG se relit en entier et porte ces textes."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()  # sommes de contrôle
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return texts.items() <= image.text.items()
    except Exception:  # un fichier abîmé peut lever presque n'importe quoi
        return False


# --- ce que l'on rend -----------------------------------------------------------------------------


def _warn(drawing: "Drawing", where: str = "") -> None:
    if drawing.unknown:
        typer.echo(f"Attention : {where}ce modèle n'a jamais lu {quoted(drawing.unknown)}.", err=True)
    if drawing.dropped:
        typer.echo(
            f"Attention : {where}description trop longue, non lu : {quoted(drawing.dropped)}.", err=True
        )


def _write(job: _Job, drawing: "Drawing", target: _Target) -> Iterator[Path]:
    """Écrit un dessin, en grille ou une image par fichier ; rend ce qui est écrit."""
    texts = {"Description": drawing.prompt} | job.texts
    if target.title:
        for i, (image, seed) in enumerate(zip(drawing.images, drawing.seeds, strict=True)):
            path = target.path / f"{target.title}-{seed}.png"
            save_png(path, [image], job.zoom, Graine=str(seed), **texts, **_scores(drawing, [i]))
            yield path
        return
    seeds = list(drawing.seeds)
    several = " ".join(map(str, seeds)) if job.judge else f"{seeds[0]} à {seeds[-1]}"
    told = several if len(seeds) > 1 else str(seeds[0])
    save_png(
        target.path, drawing.images, job.zoom, Graine=told, **texts, **_scores(drawing, range(len(seeds)))
    )
    yield target.path


def _scores(drawing: "Drawing", rows: Sequence[int]) -> dict[str, str]:
    if drawing.scores is None:
        return {}
    return {"Cosinus": " ".join(f"{drawing.scores[i]:.4f}" for i in rows)}


def _tell(job: _Job, drawing: "Drawing", files: list[Path]) -> None:
    """Dit les scores et les fichiers, ou décrit tout en une ligne de JSON."""
    scores = None if drawing.scores is None else [round(float(score), 6) for score in drawing.scores]
    if not job.as_json:
        if scores:
            told = " ; ".join(f"graine {s}, {number(x)}" for s, x in zip(drawing.seeds, scores, strict=True))
            typer.echo(f"Gardées sur {job.drawn}, avec leur cosinus selon CLIP : {told}.")
        for path in files:
            typer.echo(path)
        return
    report = {
        "prompt": drawing.prompt,
        "model": job.texts["Modele"],
        "settings": job.texts["Reglages"],
        "unknown": drawing.unknown,
        "dropped": drawing.dropped,
        "seeds": list(drawing.seeds),
        "tokens": drawing.tokens.tolist(),
        "scores": scores,
        "files": [str(path) for path in files],
    }
    typer.echo(json.dumps(report, ensure_ascii=False))


def _write_film(path: Path, painter: "TextToImage", drawing: "Drawing", zoom: int) -> None:
    """GIF d'environ quatre secondes, puis deux secondes sur le dessin fini."""
    from PIL import Image

    films = [painter.film(tokens) for tokens in drawing.tokens]
    if sum(film.size for film in films) * zoom**2 > 10**9:
        raise MinidalleError("Le film serait démesuré : réduire --zoom ou -n.")
    frames = [Image.fromarray(enlarge(grid(images), zoom)) for images in zip(*films, strict=True)]
    durations = [max(20, 4000 // len(frames))] * (len(frames) - 1) + [2000]
    with atomic_write(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
