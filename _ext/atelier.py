"""L'atelier : le moteur, les poids et les réglages, déposés à côté de la page qui fait dessiner le modèle.

La page est celle qui contient `:::{container} atelier` ; elle seule charge les scripts. Ouverte depuis un dossier,
elle ne peut lire aucun fichier, sinon des scripts : tout y est donc rangé, compressé puis écrit en base64. Le moteur
est le paquet npm `onnxruntime-web`, pris une fois pour toutes dans le cache de minidalle. S'il manque, le livre se
construit quand même, et la page dit pourquoi elle ne dessine pas.
"""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from minidalle.errors import MinidalleError
from minidalle.files import atomic_write

LOGGER = logging.getLogger(__name__)
HERE = Path(__file__).parent
FOLDER = Path("_static", "atelier")
VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# Le moteur : ses fonctions, son programme, et le module qui les relie.
ENGINE = {
    "ort.js": "ort.wasm.min.js",
    "moteur": "ort-wasm-simd-threaded.wasm",
    "liaison": "ort-wasm-simd-threaded.mjs",
}
PIECE = 3 << 18  # octets d'un morceau ; un multiple de 3, pour que leurs écritures en base64 se recollent


def engine() -> dict[str, bytes]:
    """Fichiers du moteur, sous les noms d'`ENGINE`.

    Raises:
        MinidalleError: ni dans le cache ni par npm, ou autre que celui que le livre a essayé.
    """
    from minidalle.data.openmoji import cache_dir

    archive = cache_dir() / f"onnxruntime-web-{VERSION}.tgz"
    if not archive.exists():
        _fetch(archive)
    with tarfile.open(archive) as files:
        return {name: files.extractfile(f"package/dist/{file}").read() for name, file in ENGINE.items()}


def _fetch(archive: Path) -> None:
    npm, wanted = shutil.which("npm"), f"onnxruntime-web@{VERSION}"
    if npm is None:
        raise MinidalleError("la commande npm n'est pas installée")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", wanted, "--pack-destination", folder, "--silent"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            content = next(Path(folder).glob("*.tgz")).read_bytes()
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            raise MinidalleError(f"npm n'a pas pu télécharger {wanted}") from error
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise MinidalleError(f"npm a rendu un autre {wanted} que celui que le livre a essayé")
    with atomic_write(archive) as file:
        file.write(content)


def scripts() -> dict[str, bytes]:
    """Scripts de l'atelier : nom → contenu. `reglages.js` dit lesquels charger, et dans quel ordre."""
    from minidalle import export  # lourd, et inutile au PDF
    from minidalle.generation import TextToImage

    model = TextToImage.load()
    content = export.settings(model)
    try:
        parcels = engine()
        files = {"ort.js": parcels.pop("ort.js")}
        parcels |= {"ecriture": export.writer(model.transformer), "peinture": export.painter(model.vqvae)}
        for name, parcel in parcels.items():
            files |= _pieces(name, parcel)
        content["files"] = [{"name": name, "bytes": len(data)} for name, data in files.items()]
    except MinidalleError as error:
        content["missing"], files = str(error).rstrip("."), {}
        LOGGER.info("L'atelier n'est pas prêt : %s.", content["missing"])
    told = json.dumps(content, ensure_ascii=False)
    return files | {"reglages.js": f"atelier.prepare({told});\n".encode()}


def _pieces(name: str, parcel: bytes) -> dict[str, bytes]:
    """Un colis, compressé et coupé en scripts assez petits pour que la barre de progrès avance."""
    packed = gzip.compress(parcel, mtime=0)
    pieces = [base64.b64encode(packed[i : i + PIECE]).decode() for i in range(0, len(packed), PIECE)]
    return {f"{name}-{i}.js": f'atelier.receive("{name}","{p}");\n'.encode() for i, p in enumerate(pieces, 1)}


def mark(app: Sphinx, doctree: nodes.document) -> None:
    """Retient quelle page contient l'atelier."""
    if any("atelier" in node["classes"] for node in doctree.findall(nodes.container)):
        app.env.metadata[app.env.docname]["atelier"] = True


def add_scripts(app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document) -> None:
    if app.builder.format == "html" and "atelier" in app.env.metadata.get(pagename, ()):
        app.add_css_file("atelier/atelier.css")
        for name in ("atelier.js", "reglages.js"):
            app.add_js_file(f"atelier/{name}", loading_method="defer")


def write_scripts(app: Sphinx, exception: Exception | None) -> None:
    wanted = any("atelier" in data for data in app.env.metadata.values())
    if exception is not None or app.builder.format != "html" or not wanted:
        return
    folder = Path(app.outdir, FOLDER)
    for name, data in scripts().items():
        with atomic_write(folder / name) as file:
            file.write(data)
    # Gardés hors de _static : Jupyter Book chargerait ces deux-là dans toutes les pages.
    for name in ("atelier.js", "atelier.css"):
        shutil.copy(HERE / name, folder)


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", mark)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
