"""La page où l'on note : des images et des légendes, à l'aveugle, chaque juge dans un ordre à lui.

Un serveur local, que seule cette machine peut joindre. La page ne dit ni le nom des images, ni les notes des autres.
Chaque réponse est sur le disque avant que la suivante s'affiche : arrêter net ne perd rien.
"""

import csv
import errno
import fcntl
import io
import os
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from bottle import Bottle, HTTPError, HTTPResponse, SimpleTemplate, html_escape, request, response
from PIL import Image

from minidalle.data.captioned import CaptionedImages
from minidalle.errors import MinidalleError, reason
from minidalle.evaluation.ratings import COLUMNS, read_ratings

# Une échelle dont chaque degré est dit : « 3 » veut dire la même chose pour tous.
SCALE = (
    "sans rapport",
    "un détail est juste",
    "à moitié juste",
    "juste, à un détail près",
    "tout à fait juste",
)
SIDES = (256, 1024)  # une petite image est agrandie jusque-là, une grande réduite


class Item(NamedTuple):
    """Une paire à noter ; l'image est désignée par son indice pour la lire, par son nom pour la retrouver."""

    index: int
    image: str
    caption: str


def choose(images: CaptionedImages, n: int | None = None, seed: int = 0) -> list[Item]:
    """Toutes les paires, ou celles de n images tirées de la graine : les mêmes pour tous les juges.

    Raises:
        MinidalleError: une image choisie ne se lit pas.
    """
    chosen = range(len(images))
    if n is not None and n < len(images):
        chosen = sorted(random.Random(seed).sample(chosen, n))
    found = {}
    for i in chosen:
        _, captions = images[i]  # mieux vaut une erreur ici qu'au milieu des notes
        for caption in captions:
            item = Item(i, one_line(images.names[i]), one_line(caption))
            found.setdefault(item[1:], item)
    return list(found.values())


def one_line(text: str) -> str:
    """Texte d'une seule ligne et sans octets invalides : une réponse est une ligne du fichier."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def order(items: Sequence[Item], rater: str, seed: int = 0) -> list[Item]:
    """Ordre propre au juge, où deux légendes d'une image ne se suivent pas, sauf s'il ne reste qu'elle."""
    rng = random.Random(f"{seed}/{rater}")
    left: dict[str, list[Item]] = {}
    for item in rng.sample(items, len(items)):
        left.setdefault(item.image, []).append(item)
    shown, last = [], None
    while left:
        total = sum(map(len, left.values()))
        names = [name for name in left if name != last] or [last]
        # Une image qui a la moitié des légendes restantes doit passer maintenant, ou elle finira par se suivre.
        crowded = [name for name in names if 2 * len(left[name]) > total]
        name = crowded[0] if crowded else rng.choices(names, [len(left[name]) for name in names])[0]
        shown.append(left[name].pop())
        left = {name: rest for name, rest in left.items() if rest}
        last = name
    return shown


class Answers:
    """Le fichier de notes, tenu par un seul processus : on y ajoute des lignes, sans jamais le réécrire.

    Attributes:
        grades: dernière note de chaque (image, légende, juge).
        torn: dernière ligne, retirée parce qu'une panne l'avait interrompue ; vide d'ordinaire.
    """

    def __init__(self, path: Path) -> None:
        """Ouvre, verrouille et relit le fichier, créé s'il n'existe pas.

        Raises:
            MinidalleError: fichier tenu par un autre processus, illisible, ou qui n'est pas un fichier de notes.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            # Le système lève ce verrou si le processus meurt.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MinidalleError(
                f"« {path} » sert déjà à une autre page : la fermer, ou donner un autre fichier par --out."
            ) from error
        except OSError as error:
            raise MinidalleError(
                f"Impossible d'écrire « {path} » ({reason(error)}) : changer --out."
            ) from error
        self._lock = threading.Lock()
        self._file.seek(0)
        whole, newline, tail = self._file.read().rpartition(b"\n")
        if (whole or tail) and whole.split(b"\n")[0].strip() != ",".join(COLUMNS).encode():
            raise MinidalleError(f"« {path} » n'est pas un fichier de notes : en donner un autre par --out.")
        self.torn = tail.decode("utf-8", "replace")
        self._file.truncate(len(whole + newline))
        if not newline:
            self._append(COLUMNS)
        self.grades = {(r.image, r.caption, r.rater): r.grade for r in read_ratings(path)}

    def record(self, item: Item, rater: str, grade: int) -> None:
        """Ajoute une note ; elle est sur le disque au retour.

        Raises:
            MinidalleError: disque plein, support retiré ; la note n'est pas enregistrée.
        """
        with self._lock:
            self._append((item.image, item.caption, rater, grade))
            self.grades[item.image, item.caption, rater] = grade

    def _append(self, cells: Sequence) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        line, end = text.getvalue().encode(), self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise MinidalleError(f"Note non enregistrée ({reason(error)}) : « {self.path} ».") from error


def application(images: CaptionedImages, items: Sequence[Item], answers: Answers, rater: str) -> Bottle:
    """La page, pour un juge et dans l'ordre de `items` ; la place qui suit la dernière est celle de la fin."""
    app, nonce = Bottle(), secrets.token_urlsafe()
    page = SimpleTemplate((resources.files("minidalle.evaluation") / "rating_page.html").read_text("utf-8"))
    headers = {
        "Content-Security-Policy": f"default-src 'none'; img-src 'self' data:; style-src 'nonce-{nonce}'; "
        f"script-src 'nonce-{nonce}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }

    def grade_of(item: Item) -> float | None:
        return answers.grades.get((item.image, item.caption, rater))

    def item_at(place: int) -> Item:
        if not 0 <= place < len(items):
            raise HTTPError(404)
        return items[place]

    def next_to_grade(start: int) -> HTTPResponse:
        """Va à la première paire sans note à partir de `start`, en revenant au début ; à la fin s'il n'y en a pas."""
        places = [*range(start, len(items)), *range(start)]
        place = next((place for place in places if grade_of(items[place]) is None), len(items))
        return HTTPResponse(status=303, Location=f"/{place}")

    @app.hook("before_request")
    def only_from_here() -> None:
        # Un site ouvert à côté ne doit ni passer pour cette page (son nom pointé vers 127.0.0.1), ni y poster.
        host, origin = request.get_header("Host", ""), request.get_header("Origin")
        if host.split(":")[0] not in ("127.0.0.1", "localhost"):
            raise HTTPError(403)
        if request.method == "POST" and origin not in (None, f"http://{host}"):
            raise HTTPError(403)
        for name, value in headers.items():
            response.set_header(name, value)

    @app.get("/")
    def start() -> HTTPResponse:
        return next_to_grade(0)

    @app.get("/<place:int>")
    def show(place: int) -> str:
        item = None if place == len(items) else item_at(place)
        done = sum(grade_of(item) is not None for item in items)
        told = {"item": item, "place": place, "done": done, "total": len(items), "rater": rater}
        return page.render(told, grade=item and grade_of(item), scale=SCALE, nonce=nonce)

    @app.post("/<place:int>")
    def answer(place: int) -> HTTPResponse:
        item, grade = item_at(place), request.forms.get("note")
        if grade not in map(str, range(len(SCALE))):
            raise HTTPError(400)
        try:
            answers.record(item, rater, int(grade))
        except MinidalleError as error:
            raise HTTPError(507, str(error)) from error
        return next_to_grade(place + 1)

    @app.get("/image/<place:int>")
    def image(place: int) -> bytes:
        # Redessinée : ni nom, ni métadonnées, ni rien d'autre du fichier.
        picture = Image.fromarray(images[item_at(place).index][0])
        picture.thumbnail((SIDES[1], SIDES[1]))
        if (times := SIDES[0] // max(picture.size)) > 1:
            picture = picture.resize([times * side for side in picture.size], Image.Resampling.NEAREST)
        file = io.BytesIO()
        picture.save(file, "PNG")
        response.content_type = "image/png"
        return file.getvalue()

    reasons = {400: "Demande mal formée.", 403: "Demande venue d'ailleurs, refusée.", 500: "Panne imprévue."}
    app.default_error_handler = lambda error: (
        html_escape(error.body) if error.status_code == 507 else reasons.get(error.status_code, "Rien ici.")
    )
    return app


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # Chromium garde des connexions ouvertes, qu'un seul fil attendrait


class _Handler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """Ne rien dire : le terminal sert au juge."""


def serve(app: Bottle, port: int, ready: Callable[[str], None]) -> None:
    """Sert la page à cette seule machine, jusqu'à Ctrl-C ; `ready` reçoit son adresse dès qu'elle répond.

    Raises:
        MinidalleError: port pris ou interdit.
    """
    try:
        server = make_server("127.0.0.1", port, app, _Server, _Handler)
    except (OSError, OverflowError) as error:
        raise MinidalleError(f"Le port {port} est pris ou interdit : donner un autre --port.") from error
    with server:
        ready(f"http://127.0.0.1:{server.server_port}/")
        server.serve_forever()
