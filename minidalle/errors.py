"""L'unique exception que l'utilisateur peut corriger lui-même, et les pannes du système dites en français."""

import errno


class MinidalleError(ValueError):
    """Entrée, fichier ou réglage fautif : une phrase en français qui dit quoi faire.

    La ligne de commande l'affiche sans trace d'appels et sort avec le code 2.
    """


_REASONS = {
    errno.ENOENT: "rien à cet endroit",
    errno.EACCES: "accès refusé",
    errno.EPERM: "opération interdite",
    errno.EROFS: "support en lecture seule",
    errno.ENOSPC: "disque plein",
    errno.EDQUOT: "quota dépassé",
    errno.ENOTDIR: "un fichier occupe la place d'un dossier",
    errno.EISDIR: "c'est un dossier",
    errno.EEXIST: "un fichier occupe la place d'un dossier",
    errno.ENAMETOOLONG: "nom trop long",
    errno.ELOOP: "liens en boucle",
    errno.EMFILE: "trop de fichiers ouverts",
    errno.EIO: "panne de lecture ou d'écriture",
}


def reason(error: OSError) -> str:
    """Cause d'une panne du système, que Python ne sait dire qu'en anglais."""
    return _REASONS.get(error.errno, f"erreur système {error.errno}")
