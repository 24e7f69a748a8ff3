"""L'unique exception que l'utilisateur peut corriger lui-même."""


class MinidalleError(ValueError):
    """Entrée, fichier ou réglage fautif : une phrase en français qui dit quoi faire.

    La ligne de commande l'affiche sans trace d'appels et sort avec le code 2.
    """
